"""All figures of a report, in the order of the page."""

from encsearch.search.report.confirmed import finalist_chart
from encsearch.search.report.contours import contour_chart
from encsearch.search.report.eta import eta_chart
from encsearch.search.report.history import curves_chart, history_chart
from encsearch.search.report.importance_chart import importance_chart
from encsearch.search.report.pareto import pareto_chart
from encsearch.search.report.rungs import rung_chart
from encsearch.search.report.space import parallel_chart, slice_chart
from encsearch.search.report.style import Chart, Omitted
from encsearch.search.report.summary import SweepSummary

Figures = dict[str, list[Chart | Omitted]]


def figures(summary: SweepSummary) -> Figures:
    """By the section of the page."""
    return {
        "confirmed": [finalist_chart(summary)],
        "search": [history_chart(summary), pareto_chart(summary), curves_chart(summary), rung_chart(summary)],
        "space": [
            importance_chart(summary),
            parallel_chart(summary),
            slice_chart(summary),
            contour_chart(summary),
        ],
        "forecast": [eta_chart(summary)],
    }
