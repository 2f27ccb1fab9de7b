"""One example of every command, shown under its help."""

import click

RUN, SWEEP = "runs/encnet-r18-camvid-20270101-090000-1a2b", "runs/encnet-r18-camvid-20270101-120000-3c4d"
MODEL = "models:/encnet-camvid@champion"
HEAD = "--address http://head:8265"
EXAMPLES = {
    "demo": "encsearch demo --out demo-out",
    "data import voc": "encsearch data import voc VOCdevkit data/voc",
    "data import pascal-context": "encsearch data import pascal-context CONTEXT data/pascal-context",
    "data import ade20k": "encsearch data import ade20k ADEChallengeData2016 data/ade20k",
    "data import cityscapes": "encsearch data import cityscapes CITYSCAPES data/cityscapes",
    "data import coco-stuff": "encsearch data import coco-stuff COCO data/coco-stuff",
    "data import camvid": "encsearch data import camvid CamVid data/camvid",
    "data import folder": "encsearch data import folder pictures data/mine --classes road,car,tree --dry-run",
    "data import parquet": "encsearch data import parquet tables data/mine --classes road,car,tree --dry-run",
    "data scenes": "encsearch data scenes data/scenes --train 500 --val 100 --test 100",
    "data check": "encsearch data check data/camvid",
    "data stats": "encsearch data stats data/camvid --html camvid.html",
    "check": "encsearch check camvid data.store=data/camvid",
    "train": "encsearch train camvid model.num_codewords=64 optim.lr=0.001",
    "sweep": "encsearch sweep camvid search.budget.wall=2h",
    "resume": f"encsearch resume {SWEEP} --extend 10",
    "ablate": "encsearch ablate ablation ablate.seeds=[0,1]",
    "report": f"encsearch report {SWEEP}",
    "eval": f"encsearch eval {RUN} eval.scales=[0.75,1,1.25] eval.flip=true",
    "predict": f"encsearch predict {MODEL} pictures --out masks",
    "serve": f"encsearch serve {MODEL} --port 8000",
    "export": f"encsearch export {MODEL} --format onnx --out exported",
    "import-weights": "encsearch import-weights encnet_resnet50_ade.pth model --store data/ade20k",
    "promote": f"encsearch promote {SWEEP} promote.margin=0.01",
    "rollback": "encsearch rollback encnet-camvid",
    "models": "encsearch models encnet-camvid",
    "ui": f"encsearch ui {SWEEP}",
    "runs list": "encsearch runs list --kind trial --sort best/mIoU --limit 10",
    "runs show": f"encsearch runs show {RUN}",
    "runs compare": f"encsearch runs compare {RUN} {SWEEP}",
    "sync": "encsearch sync runs",
    "submit": f"encsearch submit {HEAD} train camvid data.store=/a/camvid --out /a/runs",
    "jobs list": f"encsearch jobs list {HEAD}",
    "jobs logs": f"encsearch jobs logs train-camvid {HEAD} --follow",
    "jobs status": f"encsearch jobs status train-camvid {HEAD}",
    "jobs stop": f"encsearch jobs stop train-camvid {HEAD}",
    "jobs wait": f"encsearch jobs wait camvid-1 {HEAD}",
    "jobs links": f"encsearch jobs links camvid-1 {HEAD}",
    "doctor": f"encsearch doctor {HEAD} --out /shared/runs",
    "recipes": "encsearch recipes camvid > mine.yaml",
    "config": "encsearch config camvid optim.lr=0.001",
    "schema": "encsearch schema --paths",
}


def add_examples(command: click.Command, path: str) -> None:
    """Give the command, or each command of the group, its example."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            add_examples(below, f"{path} {name}")
    else:
        command.epilog = f"Example: {EXAMPLES[path]}"
