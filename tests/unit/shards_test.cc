// Models cut into a file a rank: what a rank finds in its file, and what is refused.
#include "regard/shards.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "checkpoint/manifest.h"
#include "checkpoint/read_tensor.h"
#include "families/tensor_names.h"
#include "parallel/even_parts.h"
#include "parallel/gqa_sharding.h"
#include "regard/attention.h"
#include "regard/linear.h"
#include "regard/model_spec.h"
#include "regard/tokenizer.h"
#include "support/error_of.h"
#include "support/expect_error.h"
#include "support/numbers.h"
#include "support/stored_weight.h"
#include "support/temp_folder.h"
#include "support/thread_ranks.h"
#include "support/tiny_llama.h"

namespace regard {
namespace {

using test::TempFolder;
using test::TinyLlama;

// One layer whose matrices hold random blocks of any type that GGUF has; heads of 32, an MLP of five leaves.
test::GgufBuilder gguf_of_type(WeightType type, uint32_t gguf_type) {
  test::GgufBuilder file = TinyLlama{.layers = 1, .hidden = 256, .heads = 8, .kv_heads = 4, .intermediate = 640}.gguf();
  uint64_t seed = 400;
  for (test::GgufTensor& tensor : file.tensors) {
    if (tensor.sizes.size() != 2 || !tensor.name.starts_with("blk.")) continue;
    // Rows of 640 are no whole number of 256-blocks: those of ffn_down stay as they are.
    if (static_cast<int64_t>(tensor.sizes[0]) % block_of(type).values != 0) continue;
    const auto stored =
        test::random_weight(type, static_cast<int64_t>(tensor.sizes[1]), static_cast<int64_t>(tensor.sizes[0]), ++seed);
    tensor.type = gguf_type;
    tensor.data.assign(reinterpret_cast<const char*>(stored.bytes.data()), stored.bytes.size());
  }
  return file;
}

std::vector<float> numbers_of(const PackedMatrix& matrix) {
  std::vector<float> numbers(static_cast<size_t>(matrix.rows() * matrix.columns()));
  for (int64_t i = 0; i < matrix.rows(); ++i)
    matrix.decode_row(i, std::span(numbers).subspan(static_cast<size_t>(i * matrix.columns()),
                                                    static_cast<size_t>(matrix.columns())));
  return numbers;
}

// Packs a part of the source, as a rank does that reads the whole model's file; and compares with the rank's own file.
class Comparison {
 public:
  Comparison(const Checkpoint& source, const Checkpoint& shard) : source_(source), shard_(shard) {}

  void expect_rows(const std::string& name, const std::vector<int64_t>& rows) const {
    expect_same(name, PackedMatrix::pack(source_.tensor(name).matrix(), Threads(1), rows));
  }
  void expect_columns(const std::string& name, const std::vector<Columns>& columns) const {
    expect_same(name, PackedMatrix::pack(source_.tensor(name).matrix(), Threads(1), {}, columns));
  }
  void expect_whole(const std::string& name) const {
    const StoredTensor& own = shard_.tensor(name);
    EXPECT_EQ(own.type, source_.tensor(name).type) << name;
    EXPECT_EQ(own.shape, source_.tensor(name).shape) << name;
    EXPECT_TRUE(std::ranges::equal(own.bytes, source_.tensor(name).bytes)) << name;
  }

 private:
  void expect_same(const std::string& name, const PackedMatrix& expected) const {
    const PackedMatrix actual = PackedMatrix::pack(shard_.tensor(name).matrix(), Threads(1));
    EXPECT_EQ(actual.rows(), expected.rows()) << name;
    EXPECT_EQ(actual.columns(), expected.columns()) << name;
    EXPECT_TRUE(numbers_of(actual) == numbers_of(expected)) << name;
  }

  const Checkpoint& source_;
  const Checkpoint& shard_;
};

std::vector<int64_t> rows_of_heads(std::span<const int64_t> heads, int64_t width) {
  std::vector<int64_t> rows;
  for (const int64_t head : heads)
    for (int64_t i = 0; i < width; ++i) rows.push_back(head < 0 ? -1 : head * width + i);
  return rows;
}

std::vector<Columns> columns_of_heads(std::span<const int64_t> heads, int64_t width) {
  std::vector<Columns> columns;
  for (const int64_t head : heads) columns.push_back({.first = head < 0 ? -1 : head * width, .count = width});
  return columns;
}

void expect_layer(const Checkpoint& source, const Checkpoint& shard, int64_t layer) {
  const LayerSpec spec = ModelSpec::from(source).layers[static_cast<size_t>(layer)];
  const TensorNames names = tensor_names_of(source);
  const AttentionConfig& c = spec.attention;
  const CheckpointShard& part = *shard.shard();
  const GqaSharding sharding(c.num_attention_heads, c.num_key_value_heads, part.tp_degree, part.gqa);
  const auto q_heads = sharding.q_heads_of(part.rank);
  const auto kv_heads = sharding.kv_heads_of(part.rank);
  const auto name = [&](const char* of) { return names.of(of, layer).weight; };
  const Comparison compare(source, shard);
  compare.expect_rows(name("attention.q"), rows_of_heads(q_heads, c.head_dim));
  compare.expect_rows(name("attention.k"), rows_of_heads(kv_heads, c.head_dim));
  compare.expect_rows(name("attention.v"), rows_of_heads(kv_heads, c.v_head_dim));
  compare.expect_columns(name("attention.output"), columns_of_heads(q_heads, c.v_head_dim));
  const ElementRange mlp = mlp_part_of(std::get<DenseMlp>(spec.mlp).width, part.tp_degree, part.rank);
  if (mlp.count == 0) {
    EXPECT_EQ(shard.tensor(name("mlp.gate")).shape, (Shape{0, c.hidden_size}));
    EXPECT_EQ(shard.tensor(name("mlp.down")).shape, (Shape{c.hidden_size, 0}));
    return;
  }
  std::vector<int64_t> rows;
  for (int64_t row = mlp.first; row < mlp.end(); ++row) rows.push_back(row);
  compare.expect_rows(name("mlp.gate"), rows);
  compare.expect_rows(name("mlp.up"), rows);
  compare.expect_columns(name("mlp.down"), {{mlp.first, mlp.count}});
  compare.expect_whole(name("attention.norm"));
  compare.expect_whole(name("mlp.norm"));
}

void expect_every_rank(const Checkpoint& source, const std::filesystem::path& folder, const ShardOptions& options) {
  save_shards(source, folder, options);
  const auto layers = std::ssize(ModelSpec::from(source).layers);
  const TensorNames names = tensor_names_of(source);
  for (int64_t rank = 0; rank < options.tp_degree; ++rank) {
    SCOPED_TRACE(::testing::Message() << "rank " << rank << " of " << options.tp_degree);
    const Checkpoint shard = Checkpoint::open_shard(folder, rank);
    ASSERT_TRUE(shard.shard().has_value());
    EXPECT_EQ(shard.shard()->tp_degree, options.tp_degree);
    EXPECT_EQ(shard.shard()->rank, rank);
    EXPECT_EQ(shard.shard()->gqa, options.gqa);
    ASSERT_EQ(shard.tensors().size(), source.tensors().size());
    for (int64_t layer = 0; layer < layers; ++layer) expect_layer(source, shard, layer);
    const Comparison compare(source, shard);
    for (const char* name : {"embedding", "norm", "head"}) compare.expect_whole(names.of(name).weight);
  }
}

TEST(Shards, HoldWhatARankWouldTakeFromTheWholeFile) {
  const std::pair<WeightType, uint32_t> types[] = {
      {WeightType::f32, test::gguf::type_f32},   {WeightType::bf16, test::gguf::type_bf16},
      {WeightType::f16, test::gguf::type_f16},   {WeightType::q8_0, test::gguf::type_q8_0},
      {WeightType::q4_0, test::gguf::type_q4_0}, {WeightType::q4_1, test::gguf::type_q4_1},
      {WeightType::q5_0, test::gguf::type_q5_0}, {WeightType::q5_1, test::gguf::type_q5_1},
      {WeightType::q4_k, test::gguf::type_q4_k}, {WeightType::q5_k, test::gguf::type_q5_k},
      {WeightType::q6_k, test::gguf::type_q6_k}};
  for (const auto& [type, gguf_type] : types) {
    SCOPED_TRACE(name_of(type));
    const TempFolder folder;
    const auto source = Checkpoint::open(folder.write("model.gguf", gguf_of_type(type, gguf_type).build()));
    // Split, converted and padded, replicated; more ranks only once, since a synced file each takes its time.
    const auto shards = folder.path() / "shards";
    for (const int64_t tp : {2, 3}) expect_every_rank(source, shards, {.tp_degree = tp});
    if (type != WeightType::q4_k) continue;
    for (const int64_t tp : {1, 8, 12}) expect_every_rank(source, shards, {.tp_degree = tp});
    expect_every_rank(source, shards, {.tp_degree = 8, .gqa = GQA::CONVERT_TO_MHA});
  }
}

TEST(Shards, KeepQuantisedBlocksWhereTheCutsLieBetweenThem) {
  const TempFolder folder;
  const auto source =
      Checkpoint::open(folder.write("model.gguf", gguf_of_type(WeightType::q8_0, test::gguf::type_q8_0).build()));
  save_shards(source, folder.path() / "shards", {.tp_degree = 4});
  const auto shard = Checkpoint::open_shard(folder.path() / "shards", 3);
  for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"})
    EXPECT_EQ(shard.tensor("blk.0." + std::string(name) + ".weight").type, WeightType::q8_0) << name;
  EXPECT_LT(shard.file_bytes(), source.file_bytes());
}

TEST(Shards, ColumnsThatAreCutThroughBlocksBecomeF32) {
  const TempFolder folder;
  const auto source =
      Checkpoint::open(folder.write("model.gguf", gguf_of_type(WeightType::q6_k, test::gguf::type_q6_k).build()));
  save_shards(source, folder.path() / "shards", {.tp_degree = 2});
  const auto shard = Checkpoint::open_shard(folder.path() / "shards", 0);
  EXPECT_EQ(shard.tensor("blk.0.attn_q.weight").type, WeightType::q6_k);
  EXPECT_EQ(shard.tensor("blk.0.attn_output.weight").type, WeightType::f32);
}

Tensor attend(const Attention& attention, const Tensor& hidden) {
  KvCache cache = attention.make_cache(KvStorage::contiguous, {.slots = 1, .capacity = 16});
  Workspace workspace(1);
  const Span span{.count = hidden.shape()[0]};
  AttentionInput input;
  input.hidden_states = hidden;
  input.spans = std::span(&span, 1);
  input.cache = &cache;
  input.workspace = &workspace;
  return attention.forward(input).hidden_states;
}

// A layer from the files of its ranks is the layer: rotation, padding and all.
TEST(Shards, LayersOfAllRanksAreTheLayer) {
  const TempFolder folder;
  const auto source = Checkpoint::open(folder.write("model.gguf", TinyLlama().gguf().build()));
  const AttentionConfig config = AttentionConfig::from(source, 0);
  const Tensor hidden = test::Numbers(402).tensor({9, 32});
  const Ranks alone(Communicator::single(), {.deterministic = true});
  const Tensor whole = attend(Attention::load(source, 0, config, Threads(1), alone), hidden);
  for (const int tp : {2, 3, 8}) {
    save_shards(source, folder.path() / "shards", {.tp_degree = tp});
    test::run_ranks(tp, [&](const std::shared_ptr<Communicator>& world) {
      const Ranks ranks(world, {.tp_degree = tp, .deterministic = true});
      const auto shard = Checkpoint::open_shard(folder.path() / "shards", world->rank());
      const Tensor ours = attend(Attention::load(shard, 0, config, Threads(1), ranks), hidden);
      EXPECT_TRUE(std::ranges::equal(ours.elements<float>(), whole.elements<float>())) << tp;
    });
  }
  const auto shard = Checkpoint::open_shard(folder.path() / "shards", 1);
  EXPECT_THAT(test::error_of([&] { (void)Attention::load(shard, 0, config, Threads(1)); }),
              ::testing::HasSubstr("it was cut for 8 ranks, but there are 1"));
}

// The folder stands alone: metadata, tokenizer and texts come from it.
TEST(Shards, OfGgufCarryTheMetadata) {
  const TempFolder folder;
  TempFolder original;
  const auto source = Checkpoint::open(original.write("model.gguf", TinyLlama().gguf().build()));
  save_shards(source, folder.path(), {.tp_degree = 2});
  for (const int64_t rank : {0, 1}) {
    const auto shard = Checkpoint::open_shard(folder.path(), rank);
    EXPECT_EQ(shard.format(), Checkpoint::Format::gguf);
    EXPECT_EQ(shard.path(), folder.path());
    EXPECT_EQ(shard.metadata(), source.metadata());
    EXPECT_EQ(Tokenizer::from(shard).encode("the inn"), Tokenizer::from(source).encode("the inn"));
    EXPECT_EQ(std::get<DenseMlp>(ModelSpec::from(shard).layers.front().mlp).width, 64);
    EXPECT_EQ(AttentionConfig::from(shard, 1).num_attention_heads, 4);
  }
}

TEST(Shards, OfHuggingFaceFoldersCarryTheTexts) {
  const TempFolder original;
  const TempFolder folder;
  TinyLlama().write_hugging_face(original.path(), 2);
  original.write("tokenizer_config.json", "{}");
  original.write("chat_template.jinja", "{{ messages }}");
  original.write("generation_config.json", R"({"eos_token_id": [0, 3]})");
  const auto source = Checkpoint::open(original.path());
  expect_every_rank(source, folder.path(), {.tp_degree = 2});
  const auto shard = Checkpoint::open_shard(folder.path(), 1);
  EXPECT_EQ(shard.format(), Checkpoint::Format::safetensors);
  EXPECT_EQ(shard.config_json(), source.config_json());
  EXPECT_EQ(shard.tokenizer_json(), source.tokenizer_json());
  EXPECT_EQ(shard.tokenizer_config_json(), "{}");
  EXPECT_EQ(shard.chat_template(), "{{ messages }}");
  EXPECT_EQ(shard.generation_config_json(), R"({"eos_token_id": [0, 3]})");
}

TEST(Shards, GgufValuesOfEveryKindComeBack) {
  const TempFolder folder;
  test::GgufBuilder model = TinyLlama().gguf();
  for (const auto& [key, value] : test::small_gguf().values) model.values.emplace_back("every." + key, value);
  const auto source = Checkpoint::open(folder.write("model.gguf", model.build()));
  save_shards(source, folder.path() / "shards", {.tp_degree = 1});
  EXPECT_EQ(Checkpoint::open_shard(folder.path() / "shards", 0).metadata(), source.metadata());
}

TEST(Shards, BiasesAreCutWithTheirRows) {
  const TempFolder folder;
  test::GgufBuilder model = TinyLlama().gguf();
  std::vector<float> bias(32);
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i) + 1;
  for (const auto& [name, count] : {std::pair{"attn_q", 32}, {"attn_k", 16}, {"attn_v", 16}, {"attn_output", 32}})
    model.tensors.push_back({.name = "blk.0." + std::string(name) + ".bias",
                             .sizes = {static_cast<uint64_t>(count)},
                             .data = {reinterpret_cast<const char*>(bias.data()), static_cast<size_t>(count) * 4}});
  const auto source = Checkpoint::open(folder.write("model.gguf", model.build()));
  save_shards(source, folder.path() / "shards", {.tp_degree = 3});
  // 4 query heads and 2 KV heads of 8 on 3 ranks: converted, the last rank has zeros only.
  const auto first = Checkpoint::open_shard(folder.path() / "shards", 1);
  EXPECT_EQ(read_vector(first, "blk.0.attn_q.bias"), (std::vector<float>(bias.begin() + 16, bias.end())));
  EXPECT_EQ(read_vector(first, "blk.0.attn_v.bias"),
            (std::vector<float>{9, 10, 11, 12, 13, 14, 15, 16, 9, 10, 11, 12, 13, 14, 15, 16}));
  const auto last = Checkpoint::open_shard(folder.path() / "shards", 2);
  EXPECT_EQ(read_vector(last, "blk.0.attn_k.bias"), std::vector<float>(16));
  EXPECT_EQ(read_vector(last, "blk.0.attn_output.bias"), bias);
}

TEST(Shards, ReplaceAnEarlierRunAndNothingElse) {
  const TempFolder original;
  const TempFolder folder;
  const auto source = Checkpoint::open(original.write("model.gguf", TinyLlama().gguf().build()));
  folder.write("notes.txt", "mine");
  save_shards(source, folder.path(), {.tp_degree = 3});
  save_shards(source, folder.path(), {.tp_degree = 2});
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "rank-00002-of-00003.safetensors"));
  EXPECT_EQ(Checkpoint::open_shard(folder.path(), 1).shard()->tp_degree, 2);
  EXPECT_TRUE(std::filesystem::exists(folder.path() / "notes.txt"));
  const TempFolder foreign;
  foreign.write("metadata.gguf", "mine");
  EXPECT_ERROR(save_shards(source, foreign.path(), {.tp_degree = 2}), "metadata.gguf is in the way");
  EXPECT_EQ(test::read_whole_file(foreign.file("metadata.gguf")), "mine");
  EXPECT_FALSE(std::filesystem::exists(foreign.path() / "manifest.json"));
  save_shards(source, foreign.path(), {.tp_degree = 2, .overwrite = true});
  EXPECT_NO_THROW((void)Checkpoint::open_shard(foreign.path(), 0));
}

TEST(Shards, RefuseWhatCanNotBeCut) {
  const TempFolder folder;
  const auto source = Checkpoint::open(folder.write("model.gguf", TinyLlama().gguf().build()));
  const auto shards = folder.path() / "shards";
  EXPECT_ERROR(save_shards(source, shards, {.tp_degree = 0}), "shard: tp_degree is 0, expected 1 to 1024");
  EXPECT_ERROR(save_shards(source, shards, {.tp_degree = 1025}), "shard: tp_degree is 1025");
  EXPECT_ERROR(save_shards(source, folder.path() / "model.gguf", {.tp_degree = 2}), "can't be made a folder");
  save_shards(source, shards, {.tp_degree = 2});
  EXPECT_ERROR(save_shards(Checkpoint::open_shard(shards, 0), folder.path() / "again", {.tp_degree = 2}),
               "is a shard already");
  EXPECT_ERROR(Checkpoint::open(shards), "holds a model cut for ranks");
  test::GgufBuilder narrow = TinyLlama().gguf();
  narrow.tensor("blk.1.attn_k.weight").sizes[1] = 8;
  narrow.tensor("blk.1.attn_k.weight").data.resize(8 * 32 * 4);
  const auto wrong = Checkpoint::open(folder.write("wrong.gguf", narrow.build()));
  EXPECT_ERROR(save_shards(wrong, folder.path() / "wrong", {.tp_degree = 2}),
               "\"blk.1.attn_k.weight\" has shape [8, 32], expected 16 rows");
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "wrong"));
}

// A folder of two ranks, and its manifest.
struct ShardFolder : TempFolder {
  ShardFolder() {
    const TempFolder original;
    save_shards(Checkpoint::open(original.write("model.gguf", TinyLlama{.layers = 1}.gguf().build())), path(),
                {.tp_degree = 2});
    manifest = test::read_whole_file(file("manifest.json"));
  }
  void change(const std::string& pointer, const nlohmann::ordered_json& value) const {
    auto json = nlohmann::ordered_json::parse(manifest);
    json[nlohmann::ordered_json::json_pointer(pointer)] = value;
    write("manifest.json", json.dump());
  }
  std::string manifest;
};

TEST(Shards, RanksThatThereAreNotAreRefused) {
  const ShardFolder folder;
  EXPECT_ERROR(Checkpoint::open_shard(folder.path(), 2), "rank is 2, but");
  EXPECT_ERROR(Checkpoint::open_shard(folder.path(), -1), "rank is -1, but");
  EXPECT_ERROR(Checkpoint::open_shard(folder.path() / "none", 0), "holds no manifest.json");
}

// As after a run that was killed.
TEST(Shards, AnUnfinishedFolderIsRefusedAndMayBeWrittenAgain) {
  const ShardFolder folder;
  const TempFolder original;
  folder.change("/finished", false);
  EXPECT_ERROR(Checkpoint::open_shard(folder.path(), 0), "is not complete");
  save_shards(Checkpoint::open(original.write("model.gguf", TinyLlama().gguf().build())), folder.path(),
              {.tp_degree = 1});
  EXPECT_EQ(Checkpoint::open_shard(folder.path(), 0).tensors().size(), 21U);
}

TEST(Shards, DamagedFilesAreRefused) {
  const ShardFolder folder;
  const std::string name = "rank-00001-of-00002.safetensors";
  const std::string bytes = test::read_whole_file(folder.file(name));
  const auto expect_refusal = [&](const std::string& written, const char* part) {
    folder.write(name, written);
    EXPECT_ERROR(Checkpoint::open_shard(folder.path(), 1), part);
    EXPECT_NO_THROW((void)Checkpoint::open_shard(folder.path(), 0));
  };
  expect_refusal(bytes.substr(0, bytes.size() - 1), "data_offsets outside");
  expect_refusal(bytes.substr(0, 100), "header");
  expect_refusal("", "is empty");
  expect_refusal(test::read_whole_file(folder.file("rank-00000-of-00002.safetensors")), "checksum");
  for (const size_t from_end : {1U, 2U, 30U, 1000U, 20000U}) {
    std::string flipped = bytes;
    flipped[bytes.size() - from_end] = static_cast<char>(flipped[bytes.size() - from_end] ^ 0x80);
    expect_refusal(flipped, "checksum");
  }
  std::filesystem::remove(folder.path() / name);
  EXPECT_ERROR(Checkpoint::open_shard(folder.path(), 1), "can't be opened");
  std::filesystem::remove(folder.path() / "metadata.gguf");
  EXPECT_ERROR(Checkpoint::open_shard(folder.path(), 0), "can't be opened");
}

TEST(Shards, ManifestsThatSaySomethingElseAreRefused) {
  const ShardFolder folder;
  const auto expect_refusal = [&](const std::string& pointer, const nlohmann::ordered_json& value, const char* part) {
    folder.change(pointer, value);
    EXPECT_ERROR(Checkpoint::open_shard(folder.path(), 0), part);
  };
  const char* const kNone = "is no manifest of this version of regard";
  expect_refusal("/kind", "shards", kNone);
  expect_refusal("/version", 2, kNone);
  expect_refusal("/tp_degree", 3, kNone);
  expect_refusal("/tp_degree", 0, kNone);
  expect_refusal("/tp_degree", 1e300, kNone);
  expect_refusal("/gqa", "auto", kNone);
  expect_refusal("/format", "zip", kNone);
  expect_refusal("/texts", {"../secret"}, kNone);
  expect_refusal("/files", nlohmann::ordered_json::array(), kNone);
  expect_refusal("/files/0/checksum", "zz", kNone);
  expect_refusal("/files/0/checksum", "0000000000000000", "checksum");
  expect_refusal("/files/0/bytes", 12, "size");
  expect_refusal("/files/0/tensors", {"a", "b"}, kNone);
  expect_refusal("/files/0/tensors", nlohmann::ordered_json::object(), "other tensors");
  expect_refusal("/files/0/tensors/blk.0.attn_q.weight/shape", {16, 33}, "not what the manifest says");
  expect_refusal("/files/0/tensors/blk.0.attn_q.weight/type", "q8_0", "not what the manifest says");
  expect_refusal("/files/0/tensors/blk.0.attn_q.weight/type", "q9", kNone);
  expect_refusal("/finished", false, "is not complete");
  const auto whole = nlohmann::ordered_json::parse(folder.manifest);
  for (const auto& [key, value] : whole.items()) {
    if (key == "regard") continue;  // for people only
    SCOPED_TRACE(key);
    auto json = whole;
    json.erase(key);
    folder.write("manifest.json", json.dump());
    EXPECT_ERROR(Checkpoint::open_shard(folder.path(), 0), kNone);
  }
  for (const std::string& text : {std::string(), std::string("{"), std::string("[]"), std::string("null"),
                                  std::string(100'000, '['), std::string("\xFF\xFE")}) {
    folder.write("manifest.json", text);
    EXPECT_ERROR(Checkpoint::open_shard(folder.path(), 0), kNone);
  }
}

// Any byte of the manifest may be any other: the shard opens as it was written, or Error.
TEST(Shards, AManifestWithAWrongByteOpensOrIsRefused) {
  const ShardFolder folder;
  size_t tried = 0;
  size_t refused = 0;
  for (size_t at = 0; at < folder.manifest.size(); ++at)
    for (const char byte : {'0', '"', '}', '\x80', ','}) {
      std::string changed = folder.manifest;
      changed[at] = byte;
      try {
        (void)Manifest::parse(changed, "manifest.json");
        // Files are slow: some of them only.
        if (++tried % 16 != 0) continue;
        folder.write("manifest.json", changed);
        EXPECT_EQ(Checkpoint::open_shard(folder.path(), 0).tensors().size(), 12U);
      } catch (const Error&) {
        ++refused;
      }
    }
  EXPECT_GT(refused, 1000U);
  EXPECT_GT(tried, 1000U);
}

}  // namespace
}  // namespace regard
