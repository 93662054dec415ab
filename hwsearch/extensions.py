"""The registries of extensions, one for each kind. An extension takes one new file and one line here.

The experiment file, the command line and their documentation take their choices from these tables. An entry names the object that
does the work as "module:object". The module is imported when the object is needed.
"""

import pkgutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema

    from hwsearch.data.recorded import ReadRecorded
    from hwsearch.data.source import ReadCorpus
    from hwsearch.export.exporter import Exporter
    from hwsearch.metrics.quality import QualityMetric
    from hwsearch.search.samplers.sampler import MakeProposer
    from hwsearch.search.strategy import Strategy
    from hwsearch.sensitivity.methods import SensitivityMethod

T = TypeVar("T")


class Extension(NamedTuple):
    """An entry of a registry."""

    place: str
    """Where the object is, as "module:object"."""
    says: str
    """What the extension does, as a sentence without its full stop."""


class Registry(Generic[T]):
    """Extensions of one kind, by the name that an experiment file gives them.

    As metadata of an annotated `str`, a registry is the type of a key whose choices are the registered names.
    """

    def __init__(self, kind: str, entries: Mapping[str, tuple[str, str]]) -> None:
        """Register entries, given as place and description by name."""
        self.kind = kind
        self.entries: dict[str, Extension] = {}
        for name, (place, says) in entries.items():
            self.register(name, place, says)

    def register(self, name: str, place: str, says: str) -> None:
        """Add an extension; `place` and `says` are those of `Extension`.

        Raises:
            ValueError: the name is taken, or the place is not of that form.
        """
        if name in self.entries:
            raise ValueError(f"{self.kind} '{name}' is registered already; wanted another name")
        module, _, attribute = place.partition(":")
        if not module or not attribute:
            raise ValueError(f"{self.kind} '{name}' is at '{place}'; wanted 'module:object'")
        self.entries[name] = Extension(place, says)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def load(self, name: str) -> T:
        """Import the object that does the work.

        Raises:
            KeyError: no such name.
        """
        found: T = pkgutil.resolve_name(self.entries[name].place)
        return found

    def check(self, name: str) -> str:
        """Refuse a name that is not registered, as pydantic refuses a wrong choice."""
        if name not in self.entries:
            from pydantic_core import PydanticCustomError

            expected = ", ".join(f"'{known}'" for known in self.entries)
            raise PydanticCustomError("enum", "Input should be {expected}", {"expected": expected})
        return name

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        """Accept the names that are registered when a value is checked."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: "CoreSchema", handler: "GetJsonSchemaHandler") -> dict[str, Any]:
        """List the names that are registered when the schema is made, each with its description."""
        meanings = {name: entry.says for name, entry in self.entries.items()}
        return {**handler(schema), "enum": list(self), "meanings": meanings}


CORPORA: "Registry[ReadCorpus]" = Registry(
    "corpus",
    {
        "folder": ("hwsearch.data.folder:read_corpus", "a folder with a folder of WAV or FLAC files for each speaker"),
        "lhotse": (
            "hwsearch.data.lhotse_corpus:read_corpus",
            "manifests of lhotse or a Kaldi data folder; wants `pip install 'hwsearch[lhotse]'`",
        ),
        "librispeech": ("hwsearch.data.librispeech:read_corpus", "a folder laid out as LibriSpeech"),
        "csv": (
            "hwsearch.data.csv_manifest:read_corpus",
            "a CSV file with the columns `path`, `speaker` and, if wanted, `transcript`",
        ),
        "fsdd": ("hwsearch.data.fsdd:read_corpus", "the recordings folder of the Free Spoken Digit Dataset"),
        "espeak": ("hwsearch.data.espeak:read_corpus", "sentences synthesised by eSpeak NG"),
    },
)

RECORDED: "Registry[ReadRecorded]" = Registry(
    "list of recorded mixtures",
    {
        "csv": (
            "hwsearch.data.mixture_csv:read_csv",
            "a CSV file with the columns `mixture`, `target`, `doa_deg` and, if wanted, `transcript`, `speaker` and `split`",
        ),
        "librimix": ("hwsearch.data.mixture_csv:read_librimix", "a CSV file that LibriMix has written beside its mixtures"),
        "sms-wsj": ("hwsearch.data.sms_wsj:read_sms_wsj", "the JSON file of SMS-WSJ"),
    },
)

STRATEGIES: "Registry[Strategy]" = Registry(
    "strategy",
    {
        "prior-corrected": (
            "hwsearch.search.strategy:PRIOR_CORRECTED",
            "adds the exact front of every prior, then the proposals of the sampler",
        ),
        "uniform": ("hwsearch.search.strategy:UNIFORM", "adds no others"),
        "curvature": (
            "hwsearch.search.strategy:CURVATURE",
            "adds the exact front of the curvature sensitivities at ever more sizes",
        ),
        "kl": ("hwsearch.search.strategy:KL", "adds the exact front of the KL sensitivities at ever more sizes"),
        "nas": ("hwsearch.search.strategy:NAS", "adds what a differentiable search finds for each of `nas.cost_weights`"),
    },
)

SAMPLERS: "Registry[MakeProposer]" = Registry(
    "sampler",
    {
        "posterior": (
            "hwsearch.search.samplers.posterior:make",
            "solves the allocation again under sensitivities corrected by every scored candidate",
        ),
        "random": ("hwsearch.search.samplers.optuna_samplers:random", "draws at random"),
        "nsga2": ("hwsearch.search.samplers.optuna_samplers:nsga2", "is Optuna's genetic algorithm NSGA-II"),
        "tpe": ("hwsearch.search.samplers.optuna_samplers:tpe", "is Optuna's multivariate tree-structured Parzen estimator"),
        "gp": ("hwsearch.search.samplers.optuna_samplers:gp", "is Optuna's Gaussian process"),
    },
)

SENSITIVITIES: "Registry[SensitivityMethod]" = Registry(
    "sensitivity",
    {
        "curvature": ("hwsearch.sensitivity.methods:CURVATURE", "the trace of the loss's Hessian times the squared error"),
        "average-curvature": ("hwsearch.sensitivity.methods:AVERAGE_CURVATURE", "`curvature` divided by the site's size"),
        "fisher": ("hwsearch.sensitivity.methods:FISHER", "`curvature` with the Fisher information instead of the Hessian"),
        "average-fisher": ("hwsearch.sensitivity.methods:AVERAGE_FISHER", "`fisher` divided by the site's size"),
        "kl": ("hwsearch.sensitivity.methods:KL", "the Bernoulli divergence between the quantized and the full-precision mask"),
        "paper-kl": ("hwsearch.sensitivity.methods:PAPER_KL", "the divergence as arXiv 2111.14479 prints it"),
        "measured": ("hwsearch.sensitivity.methods:MEASURED", "the SI-SNR lost when one site is quantized, in dB"),
        "measured-noise": ("hwsearch.sensitivity.methods:MEASURED_NOISE", "the noise that one quantized site adds"),
        "measured-noise-ratio": (
            "hwsearch.sensitivity.methods:MEASURED_NOISE_RATIO",
            "the noise that one quantized site adds, over that of full precision",
        ),
        "output-noise-ratio": (
            "hwsearch.sensitivity.methods:OUTPUT_NOISE",
            "how far one quantized site moves the estimate, as noise over that of full precision",
        ),
        "gradient": (
            "hwsearch.sensitivity.methods:GRADIENT",
            "the squared gradient times the squared output error, from one backward pass",
        ),
        "recoverability": ("hwsearch.sensitivity.methods:RECOVERABILITY", "the loss that a short training does not win back"),
    },
)

QUALITY_METRICS: "Registry[QualityMetric]" = Registry(
    "metric",
    {
        "si_snr_improvement_db": ("hwsearch.metrics.quality:SI_SNR_IMPROVEMENT", "improvement of the SI-SNR in dB"),
        "pesq": ("hwsearch.metrics.quality:PESQ", "PESQ of the estimate, 1 to 4.6"),
        "stoi": ("hwsearch.metrics.quality:STOI", "STOI of the estimate, 0 to 1"),
        "wer": ("hwsearch.metrics.quality:WER", "word error rate of the estimate, a ratio; wants `evaluation.recogniser`"),
    },
)

EXPORTERS: "Registry[Exporter]" = Registry(
    "format",
    {
        "onnx": ("hwsearch.export.exporter:ONNX", "runs on ONNX Runtime in integers"),
        "qonnx": ("hwsearch.export.exporter:QONNX", "is what FPGA tools take"),
        "finn": ("hwsearch.export.exporter:FINN", "is the integer graph that FINN builds FPGA designs from"),
        "qnn": ("hwsearch.export.exporter:QNN", "is the QNN profile of ONNX, for Snapdragon"),
        "qnn-int4": ("hwsearch.export.exporter:QNN_INT4", "is `qnn` with plain INT4 weights where they have at most 4 bits"),
        "tflite": (
            "hwsearch.export.exporter:TFLITE",
            "runs on Ethos-U, Cortex-M and Android; wants `pip install 'hwsearch[tflite]'`",
        ),
        "tflite-int4": (
            "hwsearch.export.exporter:TFLITE_INT4",
            "is `tflite` with weights of 4 bits and fewer in int4: smaller, slower, and not for Ethos-U",
        ),
    },
)
