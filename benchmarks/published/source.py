"""What SCAO 0.1 published, as plain values: facts and figures, with where each of them stands.

README is that of the package scao 0.1.1 on PyPI. Files are those of github.com/whispering3/scao (Apache-2.0); every run
there is of seed 42 on a CPU. Perplexities are per character, memory is in units of 2³⁰ bytes.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.tasks.models import Shape

ADAMW_RATE, SCAO_RATE = 3e-4, 3.51e-4
LAST_RATE = 3e-5
"""Where the cosine ends for both: a tenth of AdamW's."""


def warmup_steps(steps: int) -> int:
    """Of the learning rate and of SCAO's first phase (scao/benchmarks/gpt_scale_benchmark.py, `main`)."""
    return min(200, steps // 5)


def k_max(width: int) -> int:
    """scao/benchmarks/gpt_scale_benchmark.py, `run_single`."""
    return min(256, width // 2)


SCAO_OPTIONS = {"precond_freq": 10, "min_precond_updates": 2, "k_min": 4, "epsilon_sparse": 0.01, "tau": 1.0}
"""For up to 500 steps (the same function); `rho` and the ramp are the defaults."""


class Checkpoint(NamedTuple):
    """Validation perplexities after some steps."""

    step: int
    adamw: float
    scao: float

    @property
    def gap(self) -> float:
        """Percent by which SCAO's exceeds AdamW's."""
        return 100 * (self.scao / self.adamw - 1)


CURVES: dict[str, tuple[Checkpoint, ...]] = {
    # README, end; results_v11_500_curves.csv.
    "500": (
        Checkpoint(25, 116.5229, 111.9526),
        Checkpoint(50, 66.5564, 59.0494),
        Checkpoint(75, 34.7519, 30.0341),
        Checkpoint(100, 21.7346, 19.4631),
        Checkpoint(125, 16.9728, 15.9492),
        Checkpoint(150, 15.0195, 14.6311),
        Checkpoint(175, 14.0978, 14.1236),
        Checkpoint(200, 13.4651, 13.6244),
        Checkpoint(225, 13.2326, 13.3301),
        Checkpoint(250, 12.7835, 12.9895),
        Checkpoint(275, 12.6075, 12.7620),
        Checkpoint(300, 12.4974, 12.6278),
        Checkpoint(325, 12.2746, 12.4358),
        Checkpoint(350, 12.2202, 12.3888),
        Checkpoint(375, 12.1451, 12.3209),
        Checkpoint(400, 12.0276, 12.1868),
        Checkpoint(425, 11.9785, 12.1622),
        Checkpoint(450, 11.9383, 12.1225),
        Checkpoint(475, 11.8942, 12.0756),
        Checkpoint(500, 11.8539, 12.0328),
    ),
    # results_v11_curves.csv.
    "200": (
        Checkpoint(10, 148.7067, 143.2106),
        Checkpoint(20, 112.6560, 107.6535),
        Checkpoint(30, 82.5069, 74.9478),
        Checkpoint(40, 54.6896, 47.6023),
        Checkpoint(50, 37.4680, 32.4507),
        Checkpoint(60, 28.5375, 25.3431),
        Checkpoint(70, 23.6325, 21.6031),
        Checkpoint(80, 20.6589, 19.3959),
        Checkpoint(90, 18.7545, 18.0737),
        Checkpoint(100, 17.6057, 17.4299),
        Checkpoint(110, 16.7743, 16.9069),
        Checkpoint(120, 16.2468, 16.5483),
        Checkpoint(130, 15.8245, 16.2689),
        Checkpoint(140, 15.4520, 16.0205),
        Checkpoint(150, 15.1534, 15.7399),
        Checkpoint(160, 14.9748, 15.5628),
        Checkpoint(170, 14.8452, 15.4384),
        Checkpoint(180, 14.7617, 15.3627),
        Checkpoint(190, 14.6753, 15.2634),
        Checkpoint(200, 14.5976, 15.1931),
    ),
    # results_multiscale_new_curves.csv, and the next.
    "5m": (
        Checkpoint(10, 84.2113, 80.4906),
        Checkpoint(20, 49.1198, 44.0090),
        Checkpoint(30, 34.2736, 30.2196),
        Checkpoint(40, 28.5431, 25.1396),
        Checkpoint(50, 26.4922, 23.9396),
    ),
    "10m": (
        Checkpoint(10, 65.5486, 61.9014),
        Checkpoint(20, 33.9643, 29.5437),
        Checkpoint(30, 23.4804, 21.3487),
        Checkpoint(40, 19.9780, 18.8394),
        Checkpoint(50, 19.0065, 18.0911),
    ),
}

SECONDS_500: tuple[tuple[float, float], ...] = (
    (32.83, 32.14),
    (95.17, 86.57),
    (162.58, 140.59),
    (217.32, 203.98),
    (291.31, 261.42),
    (417.14, 320.08),
    (581.70, 377.14),
    (676.24, 436.02),
    (808.47, 493.37),
    (894.74, 552.08),
    (1078.24, 609.64),
    (1188.05, 667.25),
    (1295.50, 725.28),
    (1433.65, 790.12),
    (1539.99, 888.01),
    (1637.17, 956.49),
    (1700.99, 1019.60),
    (1782.56, 1083.54),
    (1834.37, 1147.33),
    (1886.49, 1216.41),
)
"""When the checkpoints of the 500-step run were reached: AdamW's seconds and SCAO's (results_v11_500_curves.csv)."""


class Target(NamedTuple):
    """A row of the time-to-target table (README, section 6): seconds and the checkpoint that it names for each."""

    perplexity: float
    adamw_seconds: float
    adamw_step: int
    scao_seconds: float
    scao_step: int
    speed_up: float


TARGETS = (
    Target(19.50, 217, 100, 204, 100, 1.06),
    Target(15.00, 417, 150, 261, 125, 1.60),
    Target(14.10, 582, 175, 320, 150, 1.82),
    Target(13.50, 676, 200, 436, 200, 1.55),
    Target(13.00, 894, 225, 552, 250, 1.62),
    Target(12.50, 1188, 300, 790, 350, 1.50),
    Target(12.20, 1433, 350, 957, 400, 1.50),
    Target(12.03, 1637, 400, 1216, 500, 1.35),
)


class Ablation(NamedTuple):
    """A row of the ablation table (README, section 7): what is changed, and the perplexity that it adds."""

    what: str
    quoted: str
    added: float


FULL_SYSTEM_PERPLEXITY = 15.19
"""Of the ablations, after 200 steps."""

ABLATIONS = {
    "A1": Ablation("factors start at zero", "≫ 18", 3.0),
    "A2": Ablation("SCAO exempt from clipping", "16.27", 1.08),
    "A3": Ablation("AdamW's learning rate", "16.27", 1.08),
    "A4": Ablation("ρ = 0.925, refresh every 5 steps", "17.17", 1.98),
    "A5": Ablation("no Adam phase", "18.4", 3.2),
    "A6": Ablation("no ramp", "16.8", 1.6),
    "A7": Ablation("k_max = 4", "16.1", 0.9),
}


class Clocked(NamedTuple):
    """One AdamW run as several files record it: the same final loss to every digit, and tokens a second."""

    what: str
    final_loss: float
    tokens_per_second: dict[str, float]
    """By file."""
    scao_tokens_per_second: float
    """Of the SCAO run that it is published beside."""


CLOCKED = (
    Clocked(
        "1M, 500 steps",
        2.4726580572128296,
        {"results_multiscale_v2.csv": 1260.7, "results_v11_500.csv": 536.4},
        826.9,
    ),
    Clocked(
        "1M, 200 steps",
        2.680860481262207,
        {
            "results_multiscale_v3.csv": 751.7,
            "results_multiscale_v4.csv": 584.1,
            "results_multiscale_v5.csv": 580.9,
            "results_v7.csv": 603.5,
            "results_v8.csv": 420.8,
            "results_v9.csv": 565.9,
            "results_v10.csv": 572.3,
            "results_v11.csv": 463.7,
        },
        477.1,
    ),
)


class Memory(NamedTuple):
    """A row of the memory tables (README, section 4): parameters, gradients and optimizer state."""

    shape: str
    rank: int
    """Eigenvectors a side that the released code held by then: at most four more with every refresh, from four."""
    adamw: float
    scao: float
    scao_int8: float | None = None


MEMORY = {
    "1M, 500 steps": Memory("1m", 64, 0.012, 0.026),
    "5M, 50 steps": Memory("published-5m", 24, 0.041, 0.081),
    "10M, 50 steps": Memory("published-10m", 24, 0.072, 0.143),
    "125M, 5 steps": Memory("published-125m", 4, 1.270, 2.490, 1.577),
    "350M, 5 steps": Memory("published-350m", 4, 4.506, 8.833, 5.593),
}

GIBI = 2**30


def matrices(shape: Shape) -> list[tuple[int, int]]:
    """Rows and columns of every weight matrix of a GPT."""
    width = shape.width
    block = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    return [(shape.vocabulary, width), (shape.context, width), *(block * shape.layers)]


def vector_elements(shape: Shape) -> int:
    """Of the layer norms: two a block and the last, each a weight and a bias."""
    return 2 * (2 * shape.layers + 1) * shape.width


def parameters(shape: Shape) -> int:
    return sum(m * n for m, n in matrices(shape)) + vector_elements(shape)


def adamw_bytes(shape: Shape) -> int:
    """Parameters, gradients and two moments, float32."""
    return 16 * parameters(shape)


def factor_bytes(shape: Shape, int8: bool = False) -> int:
    """The dense factors L (m, m) and R (n, n) of all matrices; int8 ones with a scale each."""
    per_entry, scales = (1, 8) if int8 else (4, 0)
    return sum(per_entry * (m * m + n * n) + scales for m, n in matrices(shape))


def scao_bytes(shape: Shape, rank: int, int8: bool = False) -> int:
    """What the tables of SCAO 0.1 count: AdamW's, the dense factors, `rank` eigenpairs a side, a diagonal of vectors.

    As `memory_bytes` in scao/preconditioner.py of scao 0.1.1 adds it up.
    """
    eigenpairs = sum(4 * rank * (m + 1 + n + 1) for m, n in matrices(shape))
    return adamw_bytes(shape) + factor_bytes(shape, int8) + eigenpairs + 4 * vector_elements(shape)
