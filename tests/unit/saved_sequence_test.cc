#include "regard/saved_sequence.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>

#include "regard/block_table.h"
#include "regard/checkpoint.h"
#include "regard/error.h"
#include "support/expect_error.h"
#include "support/numbers.h"
#include "support/small_cache.h"
#include "support/temp_folder.h"

namespace regard::test {
namespace {

using Ids = std::vector<int32_t>;

// Appends so many random tokens to every layer, some at a time, as a model does.
void fill(std::span<KvCache> layers, int64_t slot, int64_t count, uint64_t seed) {
  for (KvCache& cache : layers) {
    Numbers numbers(seed++);
    for (int64_t first = 0; first < count; first += 50) {
      const int64_t some = std::min<int64_t>(50, count - first);
      cache.append({.slot = slot, .first_position = first, .count = some},
                   numbers.tensor({some, cache.num_key_value_heads(), cache.head_dim()}),
                   numbers.tensor({some, cache.num_key_value_heads(), cache.v_head_dim()}));
      cache.trim(slot);
    }
  }
}

Ids ids(int64_t count) {
  Ids tokens(static_cast<size_t>(count));
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(7 * i % 100);
  return tokens;
}

std::vector<std::vector<std::byte>> stored_bytes(const KvCache& cache, int64_t slot, int64_t first) {
  const auto stored = cache.read_stored(slot, first, cache.length(slot) - first);
  std::vector<std::vector<std::byte>> all = {bytes_of(stored.keys), bytes_of(stored.values)};
  for (const Tensor& scales : {stored.key_scales, stored.value_scales})
    if (!scales.empty()) all.push_back(bytes_of(scales));
  return all;
}

// Both slots hold the same sequence, as far as both still hold it, which is at least what its last `needed` tokens are.
void expect_equal(const KvCache& a, int64_t slot_a, const KvCache& b, int64_t slot_b, int64_t needed) {
  ASSERT_EQ(a.length(slot_a), b.length(slot_b));
  const int64_t first = std::max(a.first_held(slot_a), b.first_held(slot_b));
  EXPECT_LE(first, std::max<int64_t>(0, a.length(slot_a) - needed));
  EXPECT_EQ(stored_bytes(a, slot_a, first), stored_bytes(b, slot_b, first));
}

struct Format {
  const char* name;
  KvFormat keys, values;
};

std::vector<Format> formats() {
  std::vector<Format> all;
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f8_e4m3, DType::f8_e5m2, DType::i8, DType::i4})
    all.push_back({name_of(dtype).data(), {.dtype = dtype}, {.dtype = dtype}});
  all.push_back({"mixed", {.dtype = DType::i8}, {.dtype = DType::bf16}});
  all.push_back({"given",
                 {.dtype = DType::i8, .scaling = KvScaling::per_head, .scales = {0.01F, 0.02F}},
                 {.dtype = DType::f8_e4m3, .scaling = KvScaling::per_tensor, .scales = {0.5F}}});
  all.push_back({"direct", {.dtype = DType::f8_e4m3, .scaling = KvScaling::per_tensor}, {.dtype = DType::f16}});
  return all;
}

std::vector<KvCache> one(KvStorage storage, KvCacheOptions options, const AttentionConfig& config) {
  std::vector<KvCache> layers;
  layers.emplace_back(storage, options, config);
  return layers;
}

TEST(SavedSequence, RoundTripsBitForBitThroughEveryStorageAndType) {
  const TempFolder folder;
  const std::string path = folder.file("sequence.safetensors");
  const AttentionConfig config = two_head_layer(40);
  for (const int64_t length : {1, 31, 64, 300})
    for (const Format& format : formats()) {
      SCOPED_TRACE(::testing::Message() << format.name << ' ' << length);
      const KvCacheOptions options{.slots = 3, .capacity = 320, .keys = format.keys, .values = format.values};
      KvCacheOptions pages_of_16 = options;
      pages_of_16.page_size = 16;
      const Ids tokens = ids(length + 1);
      auto contiguous = one(KvStorage::contiguous, options, config);
      fill(contiguous, 1, length, 5);
      save_sequence(path, contiguous, 1, tokens);
      auto again = one(KvStorage::contiguous, options, config);
      EXPECT_EQ(restore_sequence(path, again, 0), tokens);
      expect_equal(contiguous[0], 1, again[0], 0, length);
      auto paged = one(KvStorage::paged, pages_of_16, two_head_layer());
      EXPECT_EQ(restore_sequence(path, paged, 2), tokens);
      expect_equal(contiguous[0], 1, paged[0], 2, length);
      save_sequence(path, paged, 2, tokens);
      auto ring = one(KvStorage::ring, options, config);
      EXPECT_EQ(restore_sequence(path, ring, 0), tokens);
      expect_equal(contiguous[0], 1, ring[0], 0, 39);
      save_sequence(path, ring, 0, tokens);
      auto window = one(KvStorage::paged, options, config);
      EXPECT_EQ(restore_sequence(path, window, 1), tokens);
      expect_equal(contiguous[0], 1, window[0], 1, 39);
    }
}

// Bytes in odd numbers, which would put the scales behind them where no number may lie.
TEST(SavedSequence, OddWidthsRoundTrip) {
  const TempFolder folder;
  const std::string path = folder.file("sequence.safetensors");
  AttentionConfig config{.hidden_size = 8, .num_attention_heads = 1, .num_key_value_heads = 1, .head_dim = 5};
  config.v_head_dim = 2;
  const KvCacheOptions options{.slots = 1, .capacity = 8, .dtype = DType::i8};
  auto saved = one(KvStorage::contiguous, options, config);
  fill(saved, 0, 1, 5);
  save_sequence(path, saved, 0, ids(1));
  auto restored = one(KvStorage::paged, options, config);
  restore_sequence(path, restored, 0);
  expect_equal(saved[0], 0, restored[0], 0, 1);
}

// At the end of a chunk the next token sees none of it, but the last one may have to run again.
TEST(SavedSequence, ChunksKeepWhatTheLastTokenSees) {
  const TempFolder folder;
  const std::string path = folder.file("sequence.safetensors");
  const KvCacheOptions options{.slots = 1, .capacity = 320, .dtype = DType::i8};
  for (const int64_t length : {255, 256, 257, 300}) {
    auto contiguous = one(KvStorage::contiguous, options, two_head_layer(0, 64));
    fill(contiguous, 0, length, 5);
    save_sequence(path, contiguous, 0, ids(length));
    auto chunk = one(KvStorage::chunk, options, two_head_layer(0, 64));
    restore_sequence(path, chunk, 0);
    EXPECT_EQ(chunk[0].first_held(0), (length - 1) / 64 * 64);
    expect_equal(contiguous[0], 0, chunk[0], 0, (length - 1) % 64 + 1);
    chunk[0].truncate(0, length - 1);
  }
}

// A cache that holds nothing at the end of a chunk has nothing to save, and goes on with the next chunk.
TEST(SavedSequence, ASequenceAtTheEndOfAChunkGoesOn) {
  const TempFolder folder;
  const std::string path = folder.file("sequence.safetensors");
  for (const DType dtype : {DType::bf16, DType::i8}) {
    const KvCacheOptions options{.slots = 1, .capacity = 320, .dtype = dtype};
    auto saved = one(KvStorage::chunk, options, two_head_layer(0, 64));
    fill(saved, 0, 128, 5);
    ASSERT_EQ(saved[0].first_held(0), 128);
    save_sequence(path, saved, 0, ids(129));
    auto restored = one(KvStorage::paged, options, two_head_layer(0, 64));
    EXPECT_EQ(restore_sequence(path, restored, 0), ids(129));
    EXPECT_EQ(restored[0].length(0), 128);
    EXPECT_THROW((void)restored[0].read(0, 127, 1), Error);
    Numbers numbers(6);
    const Tensor keys = numbers.tensor({9, 2, 20});
    const Tensor values = numbers.tensor({9, 2, 12});
    for (auto* layers : {&saved, &restored})
      layers->front().append({.slot = 0, .first_position = 128, .count = 9}, keys, values);
    expect_equal(saved[0], 0, restored[0], 0, 9);
  }
}

// A ring whose other sequence and own window fill its pages takes the end of a text that is longer than all of them.
TEST(SavedSequence, ALongTextFitsARing) {
  const TempFolder folder;
  const std::string path = folder.file("sequence.safetensors");
  const KvCacheOptions options{.slots = 2, .capacity = 4000, .dtype = DType::f32};
  auto contiguous = one(KvStorage::contiguous, options, two_head_layer(40));
  fill(contiguous, 0, 3900, 5);
  save_sequence(path, contiguous, 0, ids(3900));
  auto ring = one(KvStorage::ring, options, two_head_layer(40));
  fill(ring, 0, 2000, 6);
  ASSERT_LT(ring[0].block_tables().pages() * ring[0].block_tables().page_size(), 3900);
  restore_sequence(path, ring, 1);
  expect_equal(contiguous[0], 0, ring[0], 1, 39);
  EXPECT_LE(3900 - ring[0].first_held(1), 39 + 32) << "and gives back what it does not need";
}

// A file of two int8 layers of 20 tokens, the keys' scales given, and caches that take it.
struct TwoLayers : TempFolder {
  static constexpr int64_t kLength = 20;
  TwoLayers() {
    auto layers = caches();
    fill(layers, 0, kLength, 5);
    save_sequence(path, layers, 0, ids(kLength + 2));
  }
  static KvCacheOptions options() {
    return {.slots = 2,
            .capacity = 40,
            .keys = KvFormat{.dtype = DType::i8, .scaling = KvScaling::per_head, .scales = {0.01F, 0.02F}},
            .values = KvFormat{.dtype = DType::i8}};
  }
  static std::vector<KvCache> caches(const KvCacheOptions& options = TwoLayers::options(),
                                     const AttentionConfig& config = two_head_layer()) {
    std::vector<KvCache> layers;
    layers.push_back(KvCache::contiguous(options, config));
    layers.push_back(KvCache::paged(options, config));
    return layers;
  }
  // Restoring is refused for that reason, and no layer holds anything afterwards.
  void expect_refused(std::string_view part) const { expect_refused(part, caches()); }
  void expect_refused(std::string_view part, std::vector<KvCache> layers) const {
    EXPECT_ERROR(restore_sequence(path, layers, 0), part);
    for (const KvCache& cache : layers) {
      EXPECT_EQ(cache.length(0), 0);
      EXPECT_EQ(cache.block_tables().free_pages(),
                cache.storage() == KvStorage::paged ? cache.block_tables().pages() : 0);
    }
  }

  const std::string path = file("sequence.safetensors");
};

// What a file holds, to be changed.
struct Content {
  std::vector<NamedTensor> tensors;
  std::map<std::string, std::string> metadata;

  ConstTensorView& at(std::string_view name) { return std::ranges::find(tensors, name, &NamedTensor::name)->tensor; }
};

void expect_broken_refused(const TwoLayers& good, const std::function<void(Content&)>& change, std::string_view part) {
  const auto file = Checkpoint::open(good.path);
  Content content{.metadata = file.safetensors_metadata()};
  for (const StoredTensor& tensor : file.tensors()) content.tensors.push_back({tensor.name, tensor.view()});
  std::stable_partition(content.tensors.begin(), content.tensors.end(),
                        [](const auto& named) { return named.tensor.dtype() != DType::u8; });
  change(content);
  const TwoLayers broken;
  save_safetensors(broken.path, content.tensors, content.metadata);
  broken.expect_refused(part);
}

TEST(SavedSequence, GivesBackTheTokensWithThoseThatHaveNotRunYet) {
  const TwoLayers good;
  auto layers = TwoLayers::caches();
  EXPECT_EQ(restore_sequence(good.path, layers, 0), ids(22));
  EXPECT_EQ(saved_tokens(good.path), ids(22));
  EXPECT_EQ(layers[1].length(0), 20);
}

TEST(SavedSequence, EveryWrongFieldIsRefusedByName) {
  const TwoLayers good;
  const auto metadata = Checkpoint::open(good.path).safetensors_metadata();
  EXPECT_EQ(metadata.size(), 4U + 2 * 8);
  for (const auto& [name, value] : metadata) {
    SCOPED_TRACE(name);
    expect_broken_refused(
        good, [&, key = name](Content& content) { content.metadata.erase(key); }, "has no " + name);
    // Numbers that could be right, if the tensors were others.
    const bool plausible = name == "length" || name == "layers.1.first_position";
    for (const std::string wrong : {"", "-1", "3", "1x", "99999999999999999999", "two\nlines"}) {
      SCOPED_TRACE(wrong);
      expect_broken_refused(
          good, [&, key = name](Content& content) { content.metadata[key] = wrong; },
          plausible && wrong == "3" ? "has shape" : name + " is \"");
    }
  }
}

TEST(SavedSequence, EveryWrongTensorIsRefusedByName) {
  const TwoLayers good;
  const Tensor other(DType::f32, {3, 2});
  const auto file = Checkpoint::open(good.path);
  EXPECT_EQ(file.tensors().size(), 1U + 2 * 5);
  for (const StoredTensor& tensor : file.tensors()) {
    SCOPED_TRACE(tensor.name);
    expect_broken_refused(
        good,
        [&](Content& content) {
          std::erase_if(content.tensors, [&](const NamedTensor& named) { return named.name == tensor.name; });
        },
        tensor.name);
    expect_broken_refused(
        good, [&](Content& content) { content.at(tensor.name) = other; }, tensor.name);
    if (tensor.shape.rank() > 1 || tensor.name == "tokens")
      expect_broken_refused(
          good,
          [&](Content& content) {
            ConstTensorView& view = content.at(tensor.name);
            view = view.slice(0, 0, TwoLayers::kLength - 1);
          },
          tensor.name == "tokens" ? "length is" : tensor.name);
  }
  expect_broken_refused(
      good,
      [&](Content& content) {
        content.tensors.insert(content.tensors.begin(), {"layers.2.keys", other});
      },
      "12 tensors, expected 11");
}

TEST(SavedSequence, WrongTokensAndScalesAreRefused) {
  const TwoLayers good;
  const Tensor negative = tensor_of<int32_t>({22}, Ids(22, -5));
  expect_broken_refused(
      good, [&](Content& content) { content.at("tokens") = negative; }, "tokens holds -5");
  const Tensor scales = tensor_of<float>({2}, {0.01F, std::numeric_limits<float>::quiet_NaN()});
  expect_broken_refused(
      good, [&](Content& content) { content.at("layers.1.given_key_scales") = scales; },
      "layers.1.given_key_scales are not those");
}

TEST(SavedSequence, FilesOfOtherKindsAreRefused) {
  const TwoLayers good;
  const TwoLayers broken;
  const std::string bytes = read_whole_file(good.path);
  broken.write("sequence.safetensors", bytes.substr(0, bytes.size() - 1));
  broken.expect_refused("data_offsets");
  broken.write("sequence.safetensors", "");
  broken.expect_refused("checkpoint: ");
  const Tensor other(DType::f32, {3, 2});
  save_safetensors(broken.path, std::vector<NamedTensor>{{"tokens", other}});
  broken.expect_refused("has no kind");
  EXPECT_ERROR(saved_tokens(broken.path), "has no kind");
  std::filesystem::remove(broken.path);
  broken.expect_refused("does not exist");
}

TEST(SavedSequence, CachesThatAreNotLikeTheFilesAreRefused) {
  const TwoLayers good;
  const auto refused = [&](std::string_view part,
                           const std::function<void(KvCacheOptions&, AttentionConfig&)>& change) {
    KvCacheOptions options = TwoLayers::options();
    AttentionConfig config = two_head_layer();
    change(options, config);
    good.expect_refused(part, TwoLayers::caches(options, config));
  };
  refused("layers.0.head_dim is \"20\", expected \"32\"", [](auto&, auto& config) { config.head_dim = 32; });
  refused("layers.0.v_head_dim", [](auto&, auto& config) { config.v_head_dim = 16; });
  refused("layers.0.key_dtype", [](auto& options, auto&) { options.keys->dtype = DType::f8_e4m3; });
  refused("layers.0.value_dtype", [](auto& options, auto&) { options.values->dtype = DType::f32; });
  refused("given_key_scales are not those", [](auto& options, auto&) { options.keys->scales[1] = 0.021F; });
  refused("given_key_scales are there", [](auto& options, auto&) { options.keys->scales.clear(); });
  refused("layers.0.kv_heads", [](auto& options, auto& config) {
    config.num_key_value_heads = 1;
    options.keys->scales.pop_back();
  });
  refused("layers.0.value_scaling", [](auto& options, auto&) { options.values->scaling = KvScaling::per_tensor; });
  refused("capacity of layer 0 is 19", [](auto& options, auto&) { options.capacity = 19; });
  auto three = TwoLayers::caches();
  three.push_back(KvCache::contiguous(TwoLayers::options(), two_head_layer()));
  good.expect_refused("layers is \"2\", expected \"3\"", std::move(three));
  good.expect_refused("layers is \"2\", expected \"0\"", {});
}

TEST(SavedSequence, SlotsInUseAreRefused) {
  const TwoLayers good;
  auto layers = TwoLayers::caches();
  fill(std::span(layers).last(1), 1, 3, 9);
  EXPECT_ERROR(restore_sequence(good.path, layers, 1), "slot 1 of layer 1 is in use with 3 tokens");
  EXPECT_ERROR(restore_sequence(good.path, layers, 2), "slot is 2");
  EXPECT_EQ(layers[0].length(1), 0);
  EXPECT_EQ(layers[1].length(1), 3);
}

TEST(SavedSequence, WhereALaterLayerLacksPagesTheEarlierOnesAreEmptyAgain) {
  const TwoLayers good;
  std::vector<KvCache> layers;
  for (const int64_t pages : {2, 1}) {
    KvCacheOptions options = TwoLayers::options();
    options.page_size = 16;
    options.pages = pages;
    layers.push_back(KvCache::paged(options, two_head_layer()));
  }
  good.expect_refused("layer 1, with 1 free pages of 16 tokens", std::move(layers));
}

TEST(SavedSequence, TheTailOfAWindowDoesNotMakeAWholeText) {
  const TempFolder folder;
  const std::string path = folder.file("sequence.safetensors");
  const KvCacheOptions options{.slots = 1, .capacity = 320, .dtype = DType::f32};
  auto ring = one(KvStorage::ring, options, two_head_layer(40));
  fill(ring, 0, 300, 5);
  save_sequence(path, ring, 0, ids(300));
  auto contiguous = one(KvStorage::contiguous, options, two_head_layer(40));
  EXPECT_ERROR(restore_sequence(path, contiguous, 0), "layers.0.first_position is \"256\", expected 0 to 0");
  auto paged = one(KvStorage::paged, options, two_head_layer());
  EXPECT_ERROR(restore_sequence(path, paged, 0), "can't go on");
  EXPECT_EQ(paged[0].block_tables().free_pages(), paged[0].block_tables().pages());
}

TEST(SavedSequence, SavesOnlyWholeSequences) {
  const TempFolder folder;
  const std::string path = folder.file("sequence.safetensors");
  auto layers = TwoLayers::caches();
  const auto refusal = [&](std::span<const KvCache> caches, const Ids& tokens, std::string_view part) {
    EXPECT_ERROR(save_sequence(path, caches, 0, tokens), part);
    EXPECT_FALSE(std::filesystem::exists(path));
  };
  refusal({}, ids(3), "no layers");
  refusal(layers, ids(3), "slot 0 holds no tokens");
  fill(layers, 0, 3, 5);
  refusal(layers, ids(2), "2 tokens are given, but slot 0 holds 3");
  refusal(layers, {1, -1, 2}, "token id is -1");
  layers[1].truncate(0, 2);
  refusal(layers, ids(3), "2 tokens in layer 1, but 3 in layer 0");
  EXPECT_ERROR(save_sequence(path, layers, 2, ids(3)), "slot is 2");
  layers[0].truncate(0, 2);
  EXPECT_ERROR(save_sequence(folder.file("none/x"), layers, 0, ids(2)), "can't be written");
}

// What others have opened is theirs, though it may be a file.
TEST(SavedSequence, DoesNotReplaceWhatADescriptorStandsFor) {
  const TempFolder folder;
  auto layers = one(KvStorage::contiguous, {.slots = 1, .capacity = 8, .dtype = DType::f32}, two_head_layer());
  fill(layers, 0, 3, 5);
  const std::string path = folder.write("file", "old");
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  const std::string descriptor = "/proc/self/fd/" + std::to_string(file);
  std::filesystem::create_symlink(descriptor, folder.path() / "link");
  for (const std::string& name : {descriptor, "/dev/fd/" + std::to_string(file), folder.file("link")})
    EXPECT_ERROR(save_sequence(name, layers, 0, ids(3)), "no file that could be replaced");
  EXPECT_EQ(read_whole_file(path), "old");
  std::filesystem::create_symlink("file", folder.path() / "other link");
  save_sequence(folder.file("other link"), layers, 0, ids(3));
  EXPECT_TRUE(std::filesystem::is_symlink(folder.path() / "other link"));
  EXPECT_NE(read_whole_file(path), "old");
  close(file);
}

// Runs `work` in a child that the kernel kills when it writes past this many bytes of a file; its wait status.
template <typename Work>
int killed_past(rlim_t bytes, const Work& work) {
  const pid_t child = fork();
  if (child == 0) {
    const rlimit no_core = {.rlim_cur = 0, .rlim_max = 0};
    const rlimit file_size = {.rlim_cur = bytes, .rlim_max = bytes};
    setrlimit(RLIMIT_CORE, &no_core);
    setrlimit(RLIMIT_FSIZE, &file_size);
    std::signal(SIGXFSZ, SIG_DFL);
    work();
    _exit(0);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status;
}

// The first save that is not killed replaces the file; until then the sequence saved before is there, whole.
TEST(SavedSequence, AKilledSaveLeavesAWholeFile) {
  const TempFolder folder;
  const std::string path = folder.file("sequence.safetensors");
  const KvCacheOptions options{.slots = 2, .capacity = 3000, .dtype = DType::f32};
  auto layers = one(KvStorage::contiguous, options, two_head_layer());
  fill(layers, 0, 2000, 5);
  fill(layers, 1, 3000, 6);
  save_sequence(path, layers, 1, ids(3000));
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path));
  save_sequence(path, layers, 0, ids(2000));
  for (const int64_t written : {int64_t{0}, int64_t{1}, int64_t{100}, int64_t{5000}, size / 2, size - 1, size}) {
    SCOPED_TRACE(written);
    const bool killed = written < size;
    const int status = killed_past(static_cast<rlim_t>(written), [&] { save_sequence(path, layers, 1, ids(3000)); });
    EXPECT_EQ(WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ, killed);
    for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
      if (entry.path() != path) {
        EXPECT_TRUE(killed);
        EXPECT_EQ(static_cast<int64_t>(entry.file_size()), written);
        std::filesystem::remove(entry.path());
      }
    auto restored = one(KvStorage::contiguous, options, two_head_layer());
    const int64_t slot = killed ? 0 : 1;
    EXPECT_EQ(restore_sequence(path, restored, 0), ids(layers[0].length(slot)));
    expect_equal(layers[0], slot, restored[0], 0, layers[0].length(slot));
  }
}

}  // namespace
}  // namespace regard::test
