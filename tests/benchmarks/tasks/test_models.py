"""The GPT of the suite: its sizes, what it counts, and that it does not look ahead."""

from __future__ import annotations

import pytest
import torch
from tiny_task import SHAPE
from torch import Tensor

from benchmarks.tasks.lm import LanguageModelling
from benchmarks.tasks.models import IGNORED, LINEAR_LAYERS, SHAPES, ByteGPT, byte_gpt


def parameters(size: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in ByteGPT(SHAPES[size]).parameters())


def test_the_published_model_has_837_888_parameters() -> None:
    assert parameters("1m") == 837_888


@pytest.mark.parametrize(
    ("size", "millions"),
    [
        ("1m", 1),
        ("5m", 5),
        ("10m", 10),
        ("125m", 124),  # GPT-2 small
        ("350m", 355),  # GPT-2 medium
    ],
)
def test_a_size_has_the_parameters_of_its_name(size: str, millions: int) -> None:
    assert round(parameters(size) / 1e6) == millions


@pytest.mark.parametrize("size", SHAPES)
def test_a_count_is_the_sum_of_its_parts(size: str) -> None:
    width, layers, heads, context, vocabulary = SHAPES[size]
    assert width % heads == 0
    # Per layer 3 + 1 + 4 + 4 squares of the width and two layer norms; tied tables; the last norm.
    assert parameters(size) == layers * (12 * width**2 + 4 * width) + (vocabulary + context) * width + 2 * width


@pytest.fixture
def model() -> ByteGPT:
    return byte_gpt(SHAPE, seed=0)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(SHAPE.vocabulary, (3, SHAPE.context), generator=torch.Generator().manual_seed(0))


def losses(model: ByteGPT, tokens: Tensor, labels: Tensor) -> Tensor:
    """Loss of every position of the first row, each asked for alone."""
    asked = []
    for position in range(labels.shape[1]):
        alone = torch.full_like(labels, IGNORED)
        alone[0, position] = labels[0, position]
        asked.append(model(tokens, alone))
    return torch.stack(asked).detach()


@pytest.mark.parametrize("changed", range(SHAPE.context))
def test_a_token_changes_no_loss_before_it(model: ByteGPT, tokens: Tensor, changed: int) -> None:
    labels = torch.zeros_like(tokens)
    other = tokens.clone()
    other[0, changed] = (tokens[0, changed] + 1) % SHAPE.vocabulary
    before, after = losses(model, tokens, labels), losses(model, other, labels)
    assert torch.equal(before[:changed], after[:changed])
    assert (before[changed:] != after[changed:]).all()


def test_a_row_changes_no_loss_of_another(model: ByteGPT, tokens: Tensor) -> None:
    other = tokens.clone()
    other[1:] = 0
    labels = torch.zeros_like(tokens)
    torch.testing.assert_close(losses(model, other, labels), losses(model, tokens, labels), rtol=1e-6, atol=0)


def test_ignored_labels_do_not_count(model: ByteGPT, tokens: Tensor) -> None:
    labels = tokens.roll(-1, 1)
    answers = labels.clone()
    answers[:, :5] = IGNORED
    prompts = labels.clone()
    prompts[:, 5:] = IGNORED
    # A mean over all is the mean over both parts, by their sizes: 5 and 3 of 8 positions.
    parts = (5 * model(tokens, prompts) + 3 * model(tokens, answers)) / 8
    torch.testing.assert_close(model(tokens, labels), parts)
    assert not torch.isclose(model(tokens, labels), model(tokens, answers))


def test_the_loss_is_nats(model: ByteGPT, tokens: Tensor) -> None:
    with torch.no_grad():
        model.tokens.weight.zero_()  # tied: every logit is 0
    torch.testing.assert_close(model(tokens, tokens), torch.tensor(16.0).log())


def test_narrow_products_change_the_loss_by_their_rounding_and_leave_the_weights_wide(tokens: Tensor) -> None:
    wide, narrow = (byte_gpt(SHAPE, 0, narrow) for narrow in (False, True))
    full, rounded = wide(tokens, tokens), narrow(tokens, tokens)
    assert rounded.dtype == torch.float32
    assert 0 < abs(float(full.detach() - rounded.detach())) < 0.02
    rounded.backward()
    for parameter in narrow.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


def test_a_precision_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, got 'half'"):
        LanguageModelling(precision="half")


def test_the_start_is_the_same_for_a_seed_whatever_ran_before() -> None:
    torch.manual_seed(1)
    first = byte_gpt(SHAPE, seed=5).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = byte_gpt(SHAPE, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["tokens.weight"], byte_gpt(SHAPE, seed=6).state_dict()["tokens.weight"])


def test_the_start_is_small_and_smaller_into_the_residual_stream() -> None:
    for name, parameter in byte_gpt(SHAPES["1m"], seed=0).named_parameters():
        if parameter.ndim == 2:
            residual = name.endswith(("projection.weight", "down.weight"))
            expected = 0.02 / 8**0.5 if residual else 0.02  # four layers add eight times
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name


def test_the_linear_layers_are_named_for_adapters(model: ByteGPT) -> None:
    linear = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    assert linear == set(LINEAR_LAYERS)
