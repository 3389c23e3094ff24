#include "model/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <mutex>
#include <optional>

#include "layers/mlp_oracle.h"
#include "layers/oracle.h"
#include "layers/oracle_parts.h"
#include "model/layer_weights.h"
#include "tensor/fail.h"

namespace regard {
namespace {

constexpr double kRounding = 0x1p-24;  // relative, of f32 to nearest

// ---- Exact parts ----

struct NormWeights {
  NormSpec spec;
  std::vector<float> weight, bias;
};

// The numbers of one layer as the checkpoint stores them; a norm that the model does not have is none.
struct LayerNumbers {
  AttentionWeights attention;
  MlpWeights mlp;
  std::optional<NormWeights> attention_norm, post_attention_norm, mlp_norm, post_mlp_norm;
};

std::optional<NormWeights> read_norm(TensorReader& reader, const std::optional<NormSpec>& spec, std::string_view part,
                                     int64_t layer, int64_t hidden) {
  if (!spec) return std::nullopt;
  const TensorPlace place{.part = part, .layer = layer};
  NormWeights norm{.spec = *spec, .weight = reader.vector(place, hidden), .bias = {}};
  if (spec->has_bias) norm.bias = reader.bias(place);
  return norm;
}

LayerNumbers read_layer(TensorReader& reader, const LayerSpec& spec, int64_t layer) {
  const auto norm = [&](const std::optional<NormSpec>& of, std::string_view part) {
    return read_norm(reader, of, part, layer, spec.attention.hidden_size);
  };
  return {.attention = attention_weights(reader, spec.attention, layer),
          .mlp = mlp_weights(reader, spec, layer),
          .attention_norm = norm(spec.attention_norm, "attention.norm"),
          .post_attention_norm = norm(spec.post_attention_norm, "attention.post_norm"),
          .mlp_norm = norm(spec.mlp_norm, "mlp.norm"),
          .post_mlp_norm = norm(spec.post_mlp_norm, "mlp.post_norm")};
}

OracleMatrix normed(const std::optional<NormWeights>& norm, OracleMatrix x) {
  for (int64_t t = 0; t < x.rows && norm; ++t)
    oracle_parts::normalize(norm->spec.kind, norm->spec.eps, norm->weight, norm->bias,
                            {x[t], static_cast<size_t>(x.columns)});
  return x;
}

void add(const OracleMatrix& branch, double scale, OracleMatrix& x) {
  for (size_t i = 0; i < x.numbers.size(); ++i) x.numbers[i] += scale * branch.numbers[i];
}

// See LayerSpec for what a layer computes.
OracleMatrix exact_layer(const LayerSpec& spec, const LayerNumbers& w, OracleMatrix x) {
  const auto attention_of = [&](const OracleMatrix& input) {
    OracleInput call;
    call.hidden_states = input;
    return normed(w.post_attention_norm, oracle(spec.attention, w.attention, call).hidden_states);
  };
  const auto mlp_of = [&](const OracleMatrix& input) {
    return normed(w.post_mlp_norm, oracle_mlp(spec.mlp, w.mlp, input));
  };
  const OracleMatrix attention_input = normed(w.attention_norm, x);
  const OracleMatrix attention = attention_of(attention_input);
  if (spec.parallel) {
    const OracleMatrix mlp = mlp_of(w.mlp_norm ? normed(w.mlp_norm, x) : attention_input);
    add(attention, spec.residual_scale, x);
    add(mlp, spec.residual_scale, x);
    return x;
  }
  add(attention, spec.residual_scale, x);
  const OracleMatrix mlp = mlp_of(normed(w.mlp_norm, x));
  add(mlp, spec.residual_scale, x);
  return x;
}

OracleMatrix exact_logits(const HeadSpec& spec, const StoredMatrix& head, const NormWeights& norm, OracleMatrix x) {
  OracleMatrix logits = oracle_parts::project(normed(norm, std::move(x)), {head, {}, 0, head.rows(), {}});
  for (double& logit : logits.numbers) {
    logit *= spec.scale;
    if (spec.soft_cap > 0) logit = spec.soft_cap * std::tanh(logit / spec.soft_cap);
  }
  return logits;
}

OracleMatrix exact_embedding(const EmbeddingSpec& spec, const StoredMatrix& embedding, int64_t columns,
                             std::span<const int32_t> tokens) {
  OracleMatrix rows(std::ssize(tokens), columns);
  std::vector<float> row(static_cast<size_t>(columns));
  for (int64_t t = 0; t < rows.rows; ++t) {
    decode_row(embedding, tokens[static_cast<size_t>(t)], row);
    for (int64_t i = 0; i < columns; ++i) rows[t][i] = spec.scale * static_cast<double>(row[static_cast<size_t>(i)]);
  }
  return rows;
}

// ---- Errors ----

template <class Number>
OracleMatrix wide(ConstTensorView rows) {
  OracleMatrix out(rows.size(0), rows.size(1));
  std::ranges::copy(rows.elements<Number>(), out.numbers.begin());
  return out;
}

OracleMatrix matrix_of(ConstTensorView rows) {
  return rows.dtype() == DType::f64 ? wide<double>(rows) : wide<float>(rows);
}

double rms(std::span<const double> numbers) {
  double sum = 0;
  for (const double number : numbers) sum += number * number;
  return std::sqrt(sum / static_cast<double>(numbers.size()));
}

double largest(std::span<const double> numbers) {
  double most = 0;
  for (const double number : numbers) most = std::max(most, std::fabs(number));
  return most;
}

// The worst row of a measure, relative to the row's own size.
void take_worst(double measure, double size, double& worst) {
  const double relative = measure == 0 ? 0.0 : measure / size;
  worst = std::max(worst, std::isfinite(relative) ? relative : std::numeric_limits<double>::infinity());
}

RowError difference(const OracleMatrix& other, const OracleMatrix& right) {
  RowError error;
  std::vector<double> differences(static_cast<size_t>(right.columns));
  for (int64_t t = 0; t < right.rows; ++t) {
    for (int64_t i = 0; i < right.columns; ++i) differences[static_cast<size_t>(i)] = other[t][i] - right[t][i];
    const double size = rms({right[t], static_cast<size_t>(right.columns)});
    // The root mean square alone tells of NaN: the largest of numbers passes over it.
    const double root = rms(differences);
    take_worst(root, size, error.rms);
    take_worst(std::isnan(root) ? root : largest(differences), size, error.largest);
  }
  return error;
}

// What roundings of the result alone may do.
RowError result_roundings(const OracleMatrix& exact) {
  RowError error;
  for (int64_t t = 0; t < exact.rows; ++t) {
    const std::span row{exact[t], static_cast<size_t>(exact.columns)};
    const double rounding = kResultRoundings * kRounding * largest(row);
    take_worst(rounding, rms(row), error.largest);
    take_worst(rounding, rms(row), error.rms);
  }
  return error;
}

// Every number by one rounding up or down, as a fixed sequence says.
OracleMatrix rounded_otherwise(OracleMatrix x) {
  uint64_t state = 1;
  for (double& number : x.numbers) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    number *= 1.0 + ((state >> 63) != 0 ? kRounding : -kRounding);
  }
  return x;
}

PartError part_error(std::string name, const OracleMatrix& ours, const OracleMatrix& exact,
                     const OracleMatrix* exact_of_rounded) {
  PartError part{.name = std::move(name), .error = difference(ours, exact), .allowed = result_roundings(exact)};
  if (exact_of_rounded == nullptr) return part;
  const RowError conditioning = difference(*exact_of_rounded, exact);
  part.allowed.largest += kInputRoundings * conditioning.largest;
  part.allowed.rms += kInputRoundings * conditioning.rms;
  return part;
}

// Runs all jobs; the first error of one comes out.
void run_jobs(std::span<const std::function<void()>> jobs, const Threads& threads,
              const std::function<void(int64_t)>& progress) {
  std::vector<std::exception_ptr> errors(jobs.size());
  std::mutex reporting;
  int64_t done = 0;
  threads.for_each(std::ssize(jobs), [&](int64_t job, int) {
    try {
      jobs[static_cast<size_t>(job)]();
    } catch (...) {
      errors[static_cast<size_t>(job)] = std::current_exception();
    }
    const std::scoped_lock lock(reporting);
    progress(++done);
  });
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

std::string name_of_state(int64_t state) { return state == 0 ? "embedding" : fmt::format("layer {}", state - 1); }

}  // namespace

std::vector<PartError> verify_parts(const Model& model, const Checkpoint& checkpoint, std::span<const int32_t> tokens,
                                    const ModelStates& ours, const Threads& threads,
                                    const std::function<void(int64_t)>& progress) {
  require(!checkpoint.shard(), "verify: the checkpoint was cut for ranks, expected a whole one");
  const ModelSpec& spec = model.spec();
  TensorReader reader(checkpoint, tensor_names_of(checkpoint));
  const StoredMatrix embedding = reader.matrix({.part = "embedding"}, spec.vocab_size, spec.hidden_size);
  const StoredMatrix head =
      spec.head.tied ? embedding : reader.matrix({.part = "head"}, spec.vocab_size, spec.hidden_size);
  const NormWeights final_norm = *read_norm(reader, spec.final_norm, "norm", 0, spec.hidden_size);

  const int64_t layers = std::ssize(spec.layers);
  std::vector<PartError> parts(static_cast<size_t>(layers) + 2);
  const auto check = [&](size_t index, std::string name, ConstTensorView in, ConstTensorView out, const auto& exact) {
    const OracleMatrix x = matrix_of(in);
    const OracleMatrix rounded = exact(rounded_otherwise(x));
    parts[index] = part_error(std::move(name), matrix_of(out), exact(x), &rounded);
  };
  std::vector<std::function<void()>> jobs;
  // The head takes longest.
  jobs.emplace_back([&] {
    check(parts.size() - 1, "logits", ours.hidden[layers], ours.logits,
          [&](const OracleMatrix& x) { return exact_logits(spec.head, head, final_norm, x); });
  });
  jobs.emplace_back([&] {
    parts[0] = part_error("embedding", matrix_of(ours.hidden[0]),
                          exact_embedding(spec.embedding, embedding, spec.hidden_size, tokens), nullptr);
  });
  std::vector<LayerNumbers> numbers;
  for (int64_t layer = 0; layer < layers; ++layer)
    numbers.push_back(read_layer(reader, spec.layers[static_cast<size_t>(layer)], layer));
  for (int64_t layer = 0; layer < layers; ++layer)
    jobs.emplace_back([&, layer] {
      const auto index = static_cast<size_t>(layer);
      check(index + 1, name_of_state(layer + 1), ours.hidden[layer], ours.hidden[layer + 1],
            [&](const OracleMatrix& x) { return exact_layer(spec.layers[index], numbers[index], x); });
    });
  run_jobs(jobs, threads, progress);
  return parts;
}

void check_reference(const ModelStates& reference, const Shape& hidden, const Shape& logits) {
  const auto check = [](const char* name, ConstTensorView states, const Shape& expected) {
    require(states.shape() == expected && (states.dtype() == DType::f32 || states.dtype() == DType::f64),
            "reference: {} have shape {} and dtype {}, expected {} and f32 or f64", name, states.shape(),
            name_of(states.dtype()), expected);
  };
  if (!reference.hidden.empty()) check("hidden states", reference.hidden, hidden);
  check("logits", reference.logits, logits);
}

std::vector<PartError> compare_states(const ModelStates& ours, const ModelStates& reference) {
  check_reference(reference, ours.hidden.shape(), ours.logits.shape());
  const auto compared = [](std::string name, ConstTensorView own, ConstTensorView other) {
    return PartError{.name = std::move(name),
                     .error = difference(matrix_of(own), matrix_of(other)),
                     .allowed = {.largest = 10 * kReferenceTolerance, .rms = kReferenceTolerance}};
  };
  std::vector<PartError> parts;
  if (!reference.hidden.empty()) {
    for (int64_t state = 0; state < ours.hidden.size(0); ++state)
      parts.push_back(compared(name_of_state(state), ours.hidden[state], reference.hidden[state]));
  }
  parts.push_back(compared("logits", ours.logits, reference.logits));
  return parts;
}

}  // namespace regard
