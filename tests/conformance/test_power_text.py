"""Wrong choices in CLIP's text encoder: each is caught, and named at the layer that is wrong."""

import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

LAYER = "text_model.encoder.layers.1"
CORE = f"{LAYER}.self_attn.out_proj.input"
EMBEDDINGS = "text_model.embeddings"
TOKENS = f"{EMBEDDINGS}.token_embedding"
FINAL_NORM = "text_model.final_layer_norm"
END = 49407


def activation(function):
    """Return another activation in one layer."""

    def spoil(module):
        mlp = module.get_submodule(f"{LAYER}.mlp")
        mlp.forward = lambda tokens: mlp.fc2(function(mlp.fc1(tokens)))

    return spoil


def steepness(module):
    """1.773 for 1.702 in the quick GELU of one layer."""
    module.get_submodule(f"{LAYER}.mlp").coefficient = 1.773


def attention(core):
    """Return another attention core in one layer, a function of query, key and value."""

    def spoil(module):
        layer = module.get_submodule(f"{LAYER}.self_attn")

        def forward(tokens):
            parts = (layer.q_proj, layer.k_proj, layer.v_proj)
            attended = core(*(layer._split_heads(part(tokens)) for part in parts))
            return layer.out_proj(attended.transpose(1, 2).flatten(2))

        layer.forward = forward

    return spoil


def masked(query, key, value, mask):
    """Attend where a mask says so; a mask of numbers is added to the scores."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def places(query):
    """Return the table of ones of all places by all places."""
    return torch.ones(query.shape[-2], query.shape[-2], dtype=torch.bool)


def no_mask(query, key, value):
    """Every token sees every other."""
    return F.scaled_dot_product_attention(query, key, value)


def one_ahead(query, key, value):
    """A token sees the next one."""
    return masked(query, key, value, places(query).tril(1))


def not_itself(query, key, value):
    """A token does not see itself; the first, which would see nothing, does."""
    mask = places(query).tril(-1)
    mask[0, 0] = True
    return masked(query, key, value, mask)


def not_itself_at_all(query, key, value):
    """A token does not see itself: the softmax of the first is that of nothing."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return scores.masked_fill(~places(query).tril(-1), -torch.inf).softmax(-1) @ value


def additive_ones(query, key, value):
    """Ones are added to the scores of the future, in place of minus infinity."""
    return masked(query, key, value, places(query).triu(1).to(query.dtype))


def looking_forward(query, key, value):
    """The mask is transposed: a token sees itself and what follows."""
    return masked(query, key, value, places(query).triu())


def scaled(factor):
    """Return a core with the scores times a factor."""
    return lambda query, key, value: F.scaled_dot_product_attention(
        query * factor, key, value, is_causal=True
    )


def query_and_key(query, key, value):
    """Queries and keys exchanged."""
    return F.scaled_dot_product_attention(key, query, value, is_causal=True)


def key_and_value(query, key, value):
    """Keys and values exchanged."""
    return F.scaled_dot_product_attention(query, value, key, is_causal=True)


def mixed_heads(query, key, value):
    """Heads innermost when they are put together again."""
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    batch, heads, tokens, width = attended.shape
    return attended.permute(0, 2, 3, 1).reshape(batch, tokens, heads, width).transpose(1, 2)


def one_head(module):
    """One head as wide as the tokens in one layer."""
    module.get_submodule(f"{LAYER}.self_attn").num_heads = 1


def padding_mask(module):
    """Padding is masked out in one layer: keys after the first end of text."""
    seen = {}
    module.register_forward_pre_hook(lambda _, args: seen.update(ids=args[0]))

    def core(query, key, value):
        ends = (seen["ids"] == END).int()
        padding = ends.cumsum(-1) - ends > 0
        return masked(query, key, value, places(query).tril() & ~padding[:, None, None, :])

    attention(core)(module)


def norm_eps(path):
    """Return LayerNorm eps 1e-6 for 1e-5 in one norm."""

    def spoil(module):
        module.get_submodule(path).eps = 1e-6

    return spoil


def unbiased_variance(module):
    """The variance over n - 1 in one norm."""
    norm = module.get_submodule(f"{LAYER}.layer_norm2")

    def forward(tokens):
        variance, mean = torch.var_mean(tokens, dim=-1, keepdim=True, correction=1)
        return (tokens - mean) * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias

    norm.forward = forward


def no_residual(module):
    """The attention of one layer is not added to what it read."""
    layer = module.get_submodule(LAYER)

    def forward(tokens):
        tokens = layer.self_attn(layer.layer_norm1(tokens))
        return tokens + layer.mlp(layer.layer_norm2(tokens))

    layer.forward = forward


def half_tokens(module):
    """Token embeddings pass through half precision."""
    table = module.get_submodule(TOKENS)
    table.register_forward_hook(lambda _, __, out: out.half().to(out.dtype))


def ids_off_by_one(module):
    """Every token is looked up one row too low."""
    table = module.get_submodule(TOKENS)
    table.register_forward_pre_hook(lambda _, args: (args[0] - 1,))


def positions(place):
    """Return other positions, a function of the ids."""

    def spoil(module):
        embeddings = module.get_submodule(EMBEDDINGS)
        table = embeddings.position_embedding.weight
        embeddings.forward = lambda ids: embeddings.token_embedding(ids) + place(ids, table)

    return spoil


def half_positions(_, table):
    """Position embeddings pass through half precision."""
    return table.half().to(table.dtype)


def no_positions(_, table):
    """Positions are not added."""
    return torch.zeros_like(table)


def positions_from_one(_, table):
    """Positions count from 1; the last row is used twice."""
    return torch.cat([table[1:], table[-1:]])


def positions_of_rows(ids, table):
    """Positions count texts rather than tokens."""
    return table[: len(ids), None]


def encoder_layers(select):
    """Return a run of some of the layers."""

    def spoil(module):
        encoder = module.get_submodule("text_model.encoder")

        def forward(tokens):
            states = [tokens]
            for layer in encoder.layers:
                states.append(layer(states[-1]))
            return select(states)

        encoder.forward = forward

    return spoil


def final_norm_missing(module):
    """The state before the final norm is handed out; the norm is never called."""
    text_model = module.text_model
    text_model.forward = lambda ids: text_model.encoder(text_model.embeddings(ids))


def final_norm_twice(module):
    """The final norm is applied to its own result."""
    norm = module.get_submodule(FINAL_NORM)
    norm.register_forward_hook(
        lambda _, __, out: F.layer_norm(out, out.shape[-1:], norm.weight, norm.bias, norm.eps)
    )


def pooled(place):
    """Return pooling elsewhere, at places that are a function of the ids."""

    def spoil(module):
        def forward(ids):
            states = module.text_model(ids)
            return states, states[torch.arange(len(ids)), place(ids)]

        module.forward = forward

    return spoil


def last_end(ids):
    """Return the place of the last end of text but for padding: the one before the last run."""
    is_text = (ids != END).int()
    return ids.shape[1] - is_text.flip(-1).argmax(-1)


def no_final_norm_in_the_pool(module):
    """The pooled state is taken before the final norm."""
    text_model = module.text_model

    def forward(ids):
        states = text_model.encoder(text_model.embeddings(ids))
        end = (ids == END).int().argmax(-1)
        return text_model.final_layer_norm(states), states[torch.arange(len(ids)), end]

    module.forward = forward


def zeros_for_empty(module):
    """The empty prompt is answered with zeros."""

    def answer(_, args, out):
        empty = args[0][:, 1] == END
        return tuple(
            part.masked_fill(empty.reshape(-1, *[1] * (part.dim() - 1)), 0) for part in out
        )

    module.register_forward_hook(answer)


WRONG = [
    pytest.param(activation(F.gelu), "tiny/base", f"{LAYER}.mlp.fc2.input", id="erf-gelu"),
    pytest.param(
        activation(lambda hidden: F.gelu(hidden, approximate="tanh")),
        "tiny/base",
        f"{LAYER}.mlp.fc2.input",
        id="tanh-gelu",
    ),
    pytest.param(activation(F.silu), "tiny/base", f"{LAYER}.mlp.fc2.input", id="silu"),
    pytest.param(steepness, "tiny/base", f"{LAYER}.mlp.fc2.input", id="gelu-steepness"),
    pytest.param(attention(no_mask), "tiny/base", CORE, id="no-mask"),
    pytest.param(attention(one_ahead), "tiny/base", CORE, id="mask-one-ahead"),
    pytest.param(attention(not_itself), "tiny/base", CORE, id="mask-not-itself"),
    pytest.param(attention(additive_ones), "tiny/base", CORE, id="mask-additive-ones"),
    pytest.param(attention(looking_forward), "tiny/base", CORE, id="mask-transposed"),
    pytest.param(padding_mask, "tiny/base", CORE, id="padding-mask"),
    pytest.param(padding_mask, "tiny/short", LAYER, id="padding-mask-short"),
    pytest.param(one_head, "tiny/base", CORE, id="one-head"),
    pytest.param(attention(mixed_heads), "tiny/base", CORE, id="head-order"),
    pytest.param(attention(scaled(4**-0.5)), "tiny/base", CORE, id="scale-of-the-whole-width"),
    pytest.param(attention(scaled(4)), "tiny-sharp/base", CORE, id="no-scale"),
    pytest.param(attention(query_and_key), "tiny/base", CORE, id="query-and-key"),
    pytest.param(attention(key_and_value), "tiny/base", CORE, id="key-and-value"),
    pytest.param(
        norm_eps(f"{LAYER}.layer_norm1"), "tiny-lowvar/base", f"{LAYER}.layer_norm1", id="eps-norm1"
    ),
    pytest.param(
        norm_eps(f"{LAYER}.layer_norm2"), "tiny-lowvar/base", f"{LAYER}.layer_norm2", id="eps-norm2"
    ),
    pytest.param(norm_eps(FINAL_NORM), "tiny-lowvar/base", FINAL_NORM, id="eps-final-norm"),
    pytest.param(unbiased_variance, "tiny/base", f"{LAYER}.layer_norm2", id="layer-norm-unbiased"),
    pytest.param(no_residual, "tiny/base", f"{LAYER}.layer_norm2.input", id="no-residual"),
    pytest.param(half_tokens, "tiny-dense/base", TOKENS, id="half-tokens"),
    pytest.param(ids_off_by_one, "tiny/base", TOKENS, id="ids-off-by-one"),
    pytest.param(positions(half_positions), "tiny-dense/base", EMBEDDINGS, id="half-positions"),
    pytest.param(positions(no_positions), "tiny/repeated", EMBEDDINGS, id="no-positions"),
    pytest.param(positions(positions_from_one), "tiny/repeated", EMBEDDINGS, id="positions-from-1"),
    pytest.param(positions(positions_of_rows), "tiny/batch3", EMBEDDINGS, id="positions-of-rows"),
    pytest.param(
        encoder_layers(lambda states: states[-2]), "tiny/base", FINAL_NORM, id="penultimate"
    ),
    pytest.param(final_norm_missing, "tiny/base", "last_hidden_state", id="final-norm-missing"),
    pytest.param(final_norm_twice, "tiny/base", FINAL_NORM, id="final-norm-twice"),
    pytest.param(
        pooled(lambda _: -1), "tiny/several-eos", "pooler_output", id="pooled-at-the-last-place"
    ),
    pytest.param(pooled(last_end), "tiny/several-eos", "pooler_output", id="pooled-at-last-end"),
    pytest.param(
        pooled(lambda ids: (ids == END).int().argmax(-1) - 1),
        "tiny/tokens75",
        "pooler_output",
        id="pooled-before-the-end",
    ),
    pytest.param(
        pooled(lambda ids: (ids == END).int().argmax(-1)[:1].expand(len(ids))),
        "tiny/batch3",
        "pooler_output",
        id="pooled-where-the-first-ends",
    ),
    pytest.param(
        no_final_norm_in_the_pool, "tiny/base", "pooler_output", id="pooled-before-the-norm"
    ),
    pytest.param(zeros_for_empty, "tiny/empty", "last_hidden_state", id="zeros-for-empty"),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("spoil", "case", "probe"), WRONG)
def test_a_wrong_choice_is_named(spoil, case, probe, dtype, run_wrong):
    """The case that hunts it fails, and the first divergence is the wrong layer itself."""
    result = run_wrong(spoil, f"text_encoder/{case}", dtype)

    assert result.verdict == "fail", result.message
    assert result.first_divergence["probe"] == probe
    assert result.first_divergence["kind"] == "fault"
    assert result.first_divergence["ratio"] >= 8, (
        "twice the limit is what a catalogued bug must reach"
    )


def test_softmax_over_nothing_is_named(run_wrong):
    """NaN fails at the row that sees nothing, though no ratio can be formed."""
    result = run_wrong(attention(not_itself_at_all), "text_encoder/tiny/base", "float32")

    assert result.verdict == "fail", result.message
    assert result.first_divergence["probe"] == CORE
    assert result.first_divergence["kind"] == "fault"
    assert "not finite" in result.first_divergence["hint"]
