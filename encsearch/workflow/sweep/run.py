"""`encsearch sweep` and `resume`: search, confirm, report; see `folder` for their files."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from encsearch.config import (
    CONFIG_FILE,
    Config,
    ConfirmConfig,
    ScalingConfig,
    SearchConfig,
    require_search,
    to_yaml,
    with_overrides,
)
from encsearch.data.own import with_own_store
from encsearch.data.store import Store
from encsearch.errors import UserError
from encsearch.files import write_whole
from encsearch.parts import code_from
from encsearch.redaction import without_user
from encsearch.reports import RunSummary, recording
from encsearch.runner.monitor import say_dashboard
from encsearch.runner.nodes import check_nodes
from encsearch.runner.ray_session import ray_session, rehearse_session
from encsearch.runner.torch_process import TorchProcess, torch_process
from encsearch.search.budget.keeper import Keeper
from encsearch.search.budget.rules import devices_of, spent_by
from encsearch.search.confirm.finalists import mean_report
from encsearch.search.confirm.trainings import Confirmation, confirm
from encsearch.search.ledger import Network
from encsearch.search.study.study import Study
from encsearch.search.sweep import run_sweep, trials_at_once
from encsearch.search.trials import Trial, flag_trials
from encsearch.text import format_count, format_money, format_params, format_score
from encsearch.tracking.outbox.notices import check_address
from encsearch.tracking.outbox.record import own_record
from encsearch.tracking.outbox.sender import SPENT, Sender, run_sender
from encsearch.train.preflight import Preflight, check_same_data, open_store, preflight
from encsearch.workflow.checked import Checked
from encsearch.workflow.job import Progress, keep_code, kept_code, report_resume, write_summary
from encsearch.workflow.sweep.earlier import earlier_prior, learn_from, previous_trials, set_prior
from encsearch.workflow.sweep.folder import (
    NOTHING_EARLIER,
    Earlier,
    StudyPlace,
    begin,
    check_database,
    locked,
    open_study,
    reopen,
)
from encsearch.workflow.sweep.networks import check_recipe, measure_network
from encsearch.workflow.sweep.records import PRICE_TAG, SweepRecords, parent_run
from encsearch.workflow.sweep.story import NEXT_TRIALS, Pages, write_story

# Paths that a resume may change: they affect where the sweep runs and its cost, not its comparison.
CHANGEABLE = (
    "scaling.",
    "search.budget.",
    "search.max_concurrent",
    "search.flagged",
    "search.confirm.finalists",
    "search.confirm.seeds",
    "search.confirm.baselines",
    "search.confirm.epochs",
)


@dataclass(frozen=True)
class Swept:
    """A finished sweep; `report` is the HTML page.

    `ended_by` says which budget ended the search before its last trial; None if none did. `excluded` is trial
    -> why it is not comparable with the others and was not confirmed.
    """

    folder: Path
    summary: RunSummary
    trials: tuple[Trial, ...] = field(repr=False)
    confirmation: Confirmation = field(repr=False)
    report: Path
    ended_by: str | None
    excluded: Mapping[int, str]


def sweep(
    config: Config,
    out: Path,
    progress: Progress,
    *,
    earlier: Earlier = NOTHING_EARLIER,
    name: str | None = None,
) -> Swept:
    """Run the recipe's search in a new folder below `out`, confirm the finalists, write the report.

    The folder is called `name`, or after the recipe and the time.
    Raises UserError without a `search:` block, PreflightError before anything is started, TrainingError when
    nothing could be trained.
    """
    search = require_search(config)
    with torch_process() as process:
        config = process.call(with_own_store, config, out)
        store = open_store(config)
        found = process.call(check_recipe, config, out, measure=False, trials_at_once=None).preflight
    _check_earlier(earlier, config, store)
    check_database()
    progress.phase("starting Ray")
    with run_sender() as sender, _networks(search) as networks, ExitStack() as session:
        session.enter_context(_session(config, search))
        check_nodes(store, out)
        sender.store()
        folder = begin(config, out, store.fingerprint, earlier, name)
        for line in found.facts:
            progress.say(line)
        with locked(folder):
            _, place = reopen(folder)
            config = keep_code(config, folder)
            session.enter_context(code_from(config.code))  # of an own sampler
            return _run(config, store, place, folder, sender, session, networks, found, progress)


def dry_run(config: Config, out: Path, *, earlier: Earlier = NOTHING_EARLIER) -> Checked:
    """Check all that `sweep` checks, and forecast by steps timed here; nothing is started or written.

    With RAY_ADDRESS the cluster's nodes are checked too, and the forecast uses its size. MLflow and a study's
    database are not contacted. Raises what `sweep` does.
    """
    from encsearch.workflow.check import check  # with torch: no trial is driven from here

    search = require_search(config)
    check_address()
    config = with_own_store(config, out)
    store = open_store(config)
    preflight(config, store, out)
    _check_earlier(earlier, config, store)
    with rehearse_session(needs=_largest(config.scaling, search.confirm)):
        at_once = None
        if "RAY_ADDRESS" in os.environ:
            check_nodes(store, out)
            at_once = trials_at_once(search, config.scaling)
        return check(config, out, measure=True, trials_at_once=at_once)


def resume(folder: Path, overrides: Sequence[str], extend: int, progress: Progress) -> Swept:
    """Continue a sweep that was killed or interrupted, or give a finished one `extend` more trials.

    Ended trials are not run again; running ones continue from their checkpoints. Raises UserError for a
    folder that is not a sweep's, for a change that would make its trials incomparable, and while another
    process runs it; PreflightError when the data has changed.
    """
    config, place = reopen(folder)
    for item in overrides:
        if not item.startswith(CHANGEABLE):
            raise UserError(
                f"{item}: the sweep has started, and its trials must stay comparable; only "
                f"{', '.join(CHANGEABLE)} can be changed now"
            )
    config = with_overrides(config, overrides)
    if extend:
        planned = require_search(config).budget.trials
        config = with_overrides(config, [f"search.budget.trials={planned + extend}"])
    search = require_search(config)
    recipe, config = config, kept_code(config, folder)
    store = open_store(config)
    with torch_process() as process:
        found = process.call(preflight, config, store, folder)
    check_same_data(config, store, place.fingerprint)
    check_database()
    progress.phase("starting Ray")
    with (
        locked(folder),
        run_sender() as sender,
        _networks(search) as networks,
        ExitStack() as session,
        code_from(config.code),  # of an own sampler
    ):
        session.enter_context(_session(config, search))
        check_nodes(store, folder)
        sender.store()
        write_whole(folder / CONFIG_FILE, to_yaml(recipe))
        return _run(config, store, place, folder, sender, session, networks, found, progress)


def _check_earlier(earlier: Earlier, config: Config, store: Store) -> None:
    """Raise UserError for an earlier sweep that says nothing about this one."""
    if earlier.warm_start:
        previous_trials(earlier.warm_start, config, store.fingerprint)
    if earlier.prior_from:
        earlier_prior(earlier.prior_from, require_search(config))


def _run(
    config: Config,
    store: Store,
    place: StudyPlace,
    folder: Path,
    sender: Sender,
    session: ExitStack,
    networks: TorchProcess,
    found: Preflight,
    progress: Progress,
) -> Swept:
    """Search, confirm, and write the report; `session` is Ray's, and is closed once nothing is trained."""
    measure = partial(_measure, config, store, found, networks)
    study = open_study(config, folder, place)
    about_earlier = []
    if place.warm_start:
        about_earlier.append(learn_from(Path(place.warm_start), study, config, store.fingerprint))
    if about_prior := set_prior(study, config, Path(place.prior_from) if place.prior_from else None):
        about_earlier.append(about_prior)
    with own_record(folder, sender.root) as record:
        sender.follow(folder)
        parent = parent_run(config, store, record, folder, place)
        with recording(parent), report_resume(folder, progress.say):
            observer = SweepRecords(config, store, record, parent.run, folder, progress, networks)
            observer.settle(study.trials())
            progress.say(_describe_start(config, study, folder))
            say_dashboard(progress.say)
            for line in about_earlier:
                progress.say(line)
            progress.phase("starting the first trials")
            keeper = Keeper(
                config,
                study,
                folder,
                trials_at_once(study.search, config.scaling),
                follow=lambda now: progress.sweep(now, config),
            )
            trials = run_sweep(
                config,
                store,
                study,
                folder,
                observer,
                keeper,
                partial(measure, with_memory=bool(study.search.limits.memory_gib)),
            )
            observer.settle(trials)
            if study.is_exhausted() and len(trials) < study.search.budget.trials:
                tried = format_count(len(trials), "configuration")
                progress.say(f"the search ends: the space has no more than the {tried} that have run")
            if keeper.ended_by:
                progress.say(keeper.ended_by)
                sender.notify(SPENT, keeper.ended_by)
                for values in study.would_ask(NEXT_TRIALS):
                    progress.say(f"would have tried next: {format_params(values)}")
            excluded = flag_trials(trials) if study.search.flagged != "keep" else {}
            networks.start()  # it will be ready for the first finalist
            progress.phase("starting the confirmation")
            confirmation = _confirm(
                config, store, study, excluded, folder, observer, keeper, measure, progress
            )
            progress.phase("writing the report")
            session.close()  # the cluster is free while the report is written
            observer.record_configurations(confirmation)
            if (price := config.scaling.price(_device_seconds(trials, confirmation))) is not None:
                parent.note({PRICE_TAG: format_money(price)})
            best = mean_report(confirmation.trainings_of(confirmation.ranking.winner))
            parent.summarize(best)
            pages = Pages(sender.store(), sender.run_ids(), parent.run)
            report = write_story(config, store, place, study, confirmation, keeper, pages, folder, networks)
    winner = confirmation.winner
    sender.notify(
        "finished", f"{config.metric} {format_score(best.metrics[config.metric])}, trial {winner.trial}"
    )
    run_ids = sender.run_ids()
    summary = RunSummary(
        kind="sweep",
        name=config.name,
        metric=config.metric,
        value=winner.value,
        fingerprint=store.fingerprint,
        store=config.data.store,
        split=config.data.val_split,
        tracking_uri=without_user(pages.store.uri),
        experiment_id=pages.store.experiment_id,
        run=winner.name,
        run_id=run_ids.get(winner.name),
        bundle=str(Path("finalists") / winner.name / "artifacts" / "bundle"),
        parent_run=parent.run,
        parent_run_id=run_ids.get(parent.run),
    )
    write_summary(folder, summary)
    return Swept(folder, summary, trials, confirmation, report, keeper.ended_by, excluded)


def _confirm(
    config: Config,
    store: Store,
    study: Study,
    excluded: Mapping[int, str],
    folder: Path,
    observer: SweepRecords,
    keeper: Keeper,
    network: Callable[[Config], Network],
    progress: Progress,
) -> Confirmation:
    plan, reduced = keeper.confirmation()
    if reduced:
        progress.say(reduced)
    keeper.write_progress()
    for number, reason in excluded.items():
        progress.say(f"trial {number} is left out: {reason}")
    scaling = _scale_finalists(config.scaling, plan)
    return confirm(
        config,
        plan,
        study.trials(),
        folder / "finalists",
        observer,
        store=store,
        network=network,
        room=trials_at_once(study.search, scaling),
        minimize=study.search.minimize,
        excluded=excluded,
        progress=keeper.write_progress,
    )


@contextmanager
def _networks(search: SearchConfig) -> Iterator[TorchProcess]:
    """The process for a sweep's networks, which starts beside Ray if the search will need it.

    It is not the one of the check, whose memory, also on a GPU, is free during the sweep.
    """
    with torch_process() as networks:
        if search.limits.memory_gib or any(path.startswith("model.") for path in search.space):
            networks.start()
        yield networks


def _measure(
    config: Config,
    store: Store,
    found: Preflight,
    networks: TorchProcess,
    trial: Config,
    *,
    with_memory: bool = False,
) -> Network:
    """The size of a trial's network; that of the recipe's own is known from the preflight."""
    if trial.model == config.model and not with_memory:
        return Network(found.num_parameters)
    return networks.call(measure_network, trial, store, with_memory=with_memory)


def _describe_start(config: Config, study: Study, folder: Path) -> str:
    planned, trials = study.search.budget.trials, study.trials()
    if not trials:
        return f"sweep {config.name}: {format_count(planned, 'trial')}; files in {folder}"
    running = sum(trial.state == "RUNNING" for trial in trials)
    paused = sum(trial.state == "PAUSED" for trial in trials)
    ended = spent_by([t for t in trials if t.state not in ("RUNNING", "PAUSED")], 0).trials
    progress = f"{format_count(ended)} of {format_count(planned)} trials have ended, {running} continue"
    progress += f", {paused} are paused" if paused else ""
    return f"sweep {config.name} continues: {progress}; files in {folder}"


def _device_seconds(trials: Sequence[Trial], confirmation: Confirmation) -> float:
    """Of the whole sweep, see `Trial.cost_seconds`."""
    trainings = (*confirmation.finalists, *confirmation.baselines)
    confirming = sum(one.result.seconds * devices_of(one.config.scaling) for one in trainings)
    return sum(trial.cost_seconds for trial in trials) + confirming


def _scale_finalists(scaling: ScalingConfig, plan: ConfirmConfig) -> ScalingConfig:
    return scaling.model_copy(update={"num_workers": plan.num_workers or scaling.num_workers})


def _session(config: Config, search: SearchConfig) -> AbstractContextManager[None]:
    needs = _largest(config.scaling, search.confirm)
    return ray_session(needs=needs, wanted=[config.scaling] * (search.max_concurrent or 1))


def _largest(scaling: ScalingConfig, plan: ConfirmConfig) -> ScalingConfig:
    """The larger of the scalings of a trial and of a finalist."""
    return max(scaling, _scale_finalists(scaling, plan), key=lambda one: one.num_workers)
