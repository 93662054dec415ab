"""Strategies for the words of a command line: odd paths, numbers, conditions and names."""

from typing import Final

from hypothesis import strategies as st

from tests.fuzz.bench import Case

PATHS: Final = (
    *("", " ", ".", "..", "/", "//", "-", "~", "new", "new/", "new/deep/x", "files", "files/", "files/recording.wav/x"),
    *("runs/tiny/", "x" * 300, "x/" * 3000, "a\x1b[31mb", "a\nb", "\udcff.wav", "ä€😀", "[bold]x[/]", "*", "%s", "/dev/zero"),
    "/dev/null",
    *("/proc/self/mem", "/proc/nowhere/x", "/dev/null/x", "files/model.onnx", "files/experiment.toml", "runs/../runs/tiny"),
)
"""Nothing that can be written beside the bench."""
NUMBERS: Final = (
    *("0", "-1", "1", "3", "60", "1e3", "1e400", "nan", "inf", "-inf", "", "x", "0x10", "9" * 30, "1_0", "٣", "9" * 5000),
)
CONDITIONS: Final = (
    *("size_bytes<=120000", "size_bytes>1e400", "size_bytes!=nan", "strategy=uniform", "strategy<uniform", "fidelity!=x"),
    *("", "=", "<", "size_bytes", "size_bytes<", "<1", "x<1", "size_bytes<=1<=2", "uniform=True", "uniform=1", "candidate=3"),
    *("a\x1b[2J<1", "\udcff=1", "size_bytes:desc", "size_bytes:up", ":", "strategy:desc", "si_snr_improvement_db>=-1e-5"),
    "size_bytes==\n1",
)
TEMPLATES: Final = (
    "status PATH",
    "pareto PATH",
    "pareto runs/tiny --where CONDITION --where CONDITION",
    "pareto runs/tiny --sort CONDITION --format csv",
    "pareto runs/tiny --plot PATH.png",
    "report PATH --output PATH.html --figures PATH",
    "compare PATH PATH --cost CONDITION --output PATH.html",
    "compare runs/tiny PATH --cost size_bytes",
    "dashboard files --port NUMBER",
    "cost PATH",
    "cost ethos-u55-128 --weight-bits NUMBER --activation-bits NUMBER",
    "cost ethos-u55-128 --run PATH --candidate NUMBER",
    "cost ethos-u55-128 --experiment PATH --plots PATH",
    "targets PATH",
    "calibrate ethos-u55-128 --measurements PATH --output PATH.toml",
    "run PATH --runs-dir PATH --dry-run --trials NUMBER --hours NUMBER --workers NUMBER",
    "search tiny.toml --runs-dir PATH --dry-run --until-hypervolume-stalls NUMBER",
    "data build tiny.toml --runs-dir PATH --processes NUMBER",
    "evaluate PATH --candidate NUMBER --output PATH --against PATH",
    "evaluate runs/tiny --model PATH --output PATH",
    "export PATH --candidate NUMBER --output PATH",
    "train-shared PATH --processes NUMBER",
    "finetune PATH --candidate NUMBER --steps NUMBER --workers NUMBER",
    "finetune runs/tiny --candidate NUMBER --candidate NUMBER --steps NUMBER --workers 0",
    "separate PATH --input PATH --doa NUMBER --output PATH.wav --threads NUMBER",
    "separate files/model.onnx --input files/recording.wav --doa NUMBER --output PATH.wav",
    "separate files/model.onnx --input PATH --doa 60 --output out/x.wav",
    "sensitivity tiny.toml --runs-dir runs --method CONDITION --workers 0",
)
_WORDS: Final = {"PATH": PATHS, "NUMBER": NUMBERS, "CONDITION": CONDITIONS}


def command_lines() -> st.SearchStrategy[Case]:
    """A command with odd words."""
    return st.sampled_from(TEMPLATES).flatmap(_filled).map(Case)


def _filled(template: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.tuples(*(_word(word) for word in template.split(" ")))


def _word(word: str) -> st.SearchStrategy[str]:
    name, dot, ending = word.partition(".")
    if name not in _WORDS:
        return st.just(word)
    return st.sampled_from(_WORDS[name]).map(lambda chosen: f"{chosen}{dot}{ending}")
