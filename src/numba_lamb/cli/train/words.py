"""What a finished experiment shows, in sentences."""

from numba_lamb.cli.train import rates
from numba_lamb.cli.train.experiment import Experiment
from numba_lamb.cli.train.plan import BASE_BATCH, CONTESTANTS, MULTIPLES


def caption(experiment: Experiment) -> str:
    """Return what the printed table holds, in one line."""
    seeds = experiment.settings.seeds
    spread = f"mean and range over {seeds} seeds" if seeds > 1 else "one seed"
    return f"Test accuracy in %, {spread}:"


def summary(experiment: Experiment) -> str:
    """Return what table and map say about the full batch: from the chosen rates, and from the best of the map."""
    return f"{carried(experiment)} {best(experiment)}"


def carried(experiment: Experiment) -> str:
    """Return what the chosen rates reach at the full batch, in one sentence."""
    parts = []
    for name, contestant in CONTESTANTS.items():
        runs = experiment.cell(name, experiment.samples)
        stopped = sum(experiment.results[run].stopped for run in runs)
        note = f" ({stopped} of {len(runs)} runs not finite)" if stopped else ""
        parts.append(f"{contestant.title} {100 * experiment.mean_accuracy(runs):.1f} %{note}")
    steps = experiment.cell("lamb", experiment.samples)[0].steps(experiment.samples)
    how = f"{steps} steps, rates chosen at batch {BASE_BATCH} and scaled by rule"
    return f"Full batch, {how}, none tuned there: {', '.join(parts)}."


def best(experiment: Experiment) -> str:
    """Return what the best rates of the map reach at the full batch, in one sentence."""
    parts = []
    for name, contestant in CONTESTANTS.items():
        found = {
            multiple: experiment.mean_accuracy(experiment.map_cell(name, experiment.samples, multiple))
            for multiple in MULTIPLES
        }
        multiple = max(found, key=lambda one: (found[one], one))
        parts.append(f"{contestant.title} {100 * found[multiple]:.1f} % at {multiple:g}")
    which = f"best of the map's {len(MULTIPLES)} rates by test accuracy, in multiples of the chosen rate"
    return f"Full batch, {which}: {', '.join(parts)}."


def search_verdict(experiment: Experiment) -> str:
    """Return which rates the search chose, and whether they are the package's."""
    parts = []
    for name, contestant in CONTESTANTS.items():
        found, brought = experiment.chosen_rate(name), rates.chosen(name)
        note = "" if found == brought else f" (the package has {brought:g})"
        parts.append(f"{contestant.title} {found:g}{note}")
    differ = any(experiment.chosen_rate(name) != rates.chosen(name) for name in CONTESTANTS)
    verdict = "not all of them the package's" if differ else "the same as the package's"
    return f"Rates searched at batch {BASE_BATCH}: {', '.join(parts)}; {verdict}."
