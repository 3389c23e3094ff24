#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/panel.h"
#include "regard/projection.h"
#include "tensor/fail.h"

namespace regard {
namespace {

using kernels::kTile;
using kernels::PanelType;
using kernels::PanelView;

PanelType panel_type_of(WeightType type) {
  switch (type) {
    case WeightType::bf16:
      return PanelType::bf16;
    case WeightType::f16:
      return PanelType::f16;
    case WeightType::q8_0:
    case WeightType::q5_0:
      return PanelType::i8;
    case WeightType::q5_1:
    case WeightType::q5_k:
    case WeightType::q6_k:
      return PanelType::i8_wide;
    case WeightType::q4_0:
    case WeightType::q4_1:
      return PanelType::u4;
    case WeightType::q4_k:
      return PanelType::u4_wide;
    default:
      return PanelType::f32;
  }
}

// `group` is 0 for plain types, and where a quantised one is decoded.
PanelView empty_panel(WeightType type, int64_t group, int64_t columns) {
  PanelView panel{.type = is_quantized(type) && group == 0 ? PanelType::f32 : panel_type_of(type),
                  .group = static_cast<int32_t>(group)};
  panel.tile_bytes = panel.bytes_of(columns);
  return panel;
}

// The largest groups that fit between all cuts. Kernels take columns in pairs, so they are even; 0 where f32 would not
// take more memory.
int64_t fitting_group(WeightType type, std::span<const Columns> runs, int64_t columns) {
  int64_t group = group_of(type);
  for (const Columns& run : runs) {
    if (run.first >= 0) group = std::gcd(group, run.first);
    group = std::gcd(group, run.count);
  }
  if (group % 2 != 0) return 0;
  const int64_t f32_bytes = columns * kTile * static_cast<int64_t>(sizeof(float));
  return empty_panel(type, group, columns).tile_bytes < f32_bytes ? group : 0;
}

// The blocks of a row that hold a run's columns, as a matrix of one row, and how many columns come before the first.
struct Cover {
  WeightView row;
  int64_t skipped;
};

Cover cover_of(const WeightView& weight, int64_t row, const Columns& run) {
  const WeightBlock block = block_of(weight.type);
  const int64_t first = run.first / block.values;
  const int64_t count = (run.first + run.count + block.values - 1) / block.values - first;
  const auto bytes =
      weight.row(row).subspan(static_cast<size_t>(first * block.bytes), static_cast<size_t>(count * block.bytes));
  return {.row = {.type = weight.type, .rows = 1, .columns = count * block.values, .bytes = bytes},
          .skipped = run.first - first * block.values};
}

// Writes row `lane` of a tile; true if the row holds what no weight may have: NaN, or a minimum that its header can't
// hold. Columns of zeros are left as they are: zero.
class TileWriter {
 public:
  TileWriter(const PanelView& panel, std::span<const Columns> runs, std::byte* tile)
      : panel_(panel), info_(kernels::info_of(panel.type)), runs_(runs), tile_(tile) {}

  [[nodiscard]] bool write(const WeightView& weight, int64_t row, int64_t lane) {
    bool bad = false;
    int64_t to = 0;
    for (const Columns& run : runs_) {
      if (run.first >= 0) bad |= write_run(cover_of(weight, row, run), run.count, to, lane);
      to += run.count;
    }
    return bad;
  }

 private:
  bool write_run(const Cover& cover, int64_t count, int64_t to, int64_t lane) {
    if (panel_.is_grouped()) return write_groups(cover, count, to, lane);
    if (panel_.type == PanelType::f32) return write_f32(cover, count, to, lane);
    return write_halves(cover, count, to, lane);
  }

  bool write_f32(const Cover& cover, int64_t count, int64_t to, int64_t lane) {
    values_.resize(static_cast<size_t>(cover.row.columns));
    decode_row(cover.row, 0, values_);
    const float* from = values_.data() + cover.skipped;
    auto* out = reinterpret_cast<float*>(tile_) + to * kTile + lane;
    bool bad = false;
    for (int64_t k = 0; k < count; ++k) {
      out[k * kTile] = from[k];
      bad |= std::isnan(from[k]);
    }
    return bad;
  }

  bool write_halves(const Cover& cover, int64_t count, int64_t to, int64_t lane) {
    const uint16_t infinity = panel_.type == PanelType::bf16 ? 0x7F80 : 0x7C00;
    const std::byte* from = cover.row.bytes.data();
    auto* out = reinterpret_cast<uint16_t*>(tile_) + to * kTile + lane;
    bool bad = false;
    for (int64_t k = 0; k < count; ++k) {
      uint16_t bits = 0;
      std::memcpy(&bits, from + k * 2, 2);
      out[k * kTile] = bits;
      bad |= (bits & 0x7FFF) > infinity;
    }
    return bad;
  }

  // The panel's groups may be parts of the weight's.
  bool write_groups(const Cover& cover, int64_t count, int64_t to, int64_t lane) {
    const int64_t stored_group = group_of(cover.row.type);
    integers_.resize(static_cast<size_t>(cover.row.columns));
    values_.resize(static_cast<size_t>(cover.row.columns / stored_group));
    minimums_.resize(values_.size());
    unpack_row(cover.row, 0, {.integers = integers_, .scales = values_, .minimums = minimums_});
    bool bad = false;
    std::byte* header = tile_ + panel_.bytes_of(to);
    for (int64_t k = cover.skipped; k < cover.skipped + count; k += panel_.group) {
      const float scale = values_[static_cast<size_t>(k / stored_group)];
      const float minimum = minimums_[static_cast<size_t>(k / stored_group)];
      bad |= std::isnan(scale) || std::isnan(minimum);
      // The minimum of q4_0 is -8 times its scale, which may be more than an f16.
      if (panel_.type == PanelType::u4)
        bad |= std::isfinite(minimum) && !std::isfinite(static_cast<float>(Float16(minimum)));
      write_header(header, lane, scale, minimum);
      write_integers(header + info_.header_bytes, lane, integers_.data() + k);
      header += panel_.bytes_of(panel_.group);
    }
    return bad;
  }

  void write_header(std::byte* header, int64_t lane, float scale, float minimum) const {
    if (panel_.type == PanelType::i8_wide || panel_.type == PanelType::u4_wide) {
      auto* out = reinterpret_cast<float*>(header);
      out[lane] = scale;
      out[kTile + lane] = minimum;
      return;
    }
    auto* out = reinterpret_cast<Float16*>(header);
    out[lane] = Float16(scale);
    if (panel_.type == PanelType::u4) out[kTile + lane] = Float16(minimum);
  }

  void write_integers(std::byte* out, int64_t lane, const int8_t* integers) const {
    if (panel_.type == PanelType::i8 || panel_.type == PanelType::i8_wide) {
      for (int64_t k = 0; k < panel_.group; ++k) out[k * kTile + lane] = static_cast<std::byte>(integers[k]);
      return;
    }
    for (int64_t k = 0; k < panel_.group; k += 2)
      out[k / 2 * kTile + lane] = static_cast<std::byte>(integers[k]) | static_cast<std::byte>(integers[k + 1]) << 4;
  }

  const PanelView& panel_;
  kernels::PanelTypeInfo info_;
  std::span<const Columns> runs_;
  std::byte* tile_;
  std::vector<int8_t> integers_;
  std::vector<float> values_;
  std::vector<float> minimums_;
};

void check_rows(const WeightView& weight, std::span<const int64_t> rows) {
  for (const int64_t row : rows)
    require(row >= -1 && row < weight.rows, "weight: row {} is asked for, expected -1 to {}", row, weight.rows - 1);
}

// Neighbours become one run, and are read in one go.
std::vector<Columns> merged(std::span<const Columns> runs) {
  std::vector<Columns> all;
  for (const Columns& run : runs) {
    const bool zeros = run.first < 0;
    if (!all.empty() &&
        (zeros ? all.back().first < 0 : all.back().first >= 0 && all.back().first + all.back().count == run.first))
      all.back().count += run.count;
    else
      all.push_back(run);
  }
  return all;
}

// How many columns they are together.
int64_t checked_width(const WeightView& weight, std::span<const Columns> runs) {
  int64_t width = 0;
  for (const Columns& run : runs) {
    const bool there = run.first == -1 || (run.first >= 0 && run.first <= weight.columns);
    const int64_t most = run.first == -1 ? std::numeric_limits<int32_t>::max() : weight.columns - run.first;
    require(there && run.count >= 0 && run.count <= most, "weight: {} columns from {} are asked for, but there are {}",
            run.count, run.first, weight.columns);
    width += run.count;
  }
  return width;
}

}  // namespace

PackedMatrix PackedMatrix::pack(const WeightView& weight, const Threads& threads, std::span<const int64_t> rows,
                                std::span<const Columns> columns) {
  check_rows(weight, rows);
  const Columns all{.first = 0, .count = weight.columns};
  if (columns.empty()) columns = std::span(&all, 1);
  PackedMatrix packed;
  packed.rows_ = rows.empty() ? weight.rows : static_cast<int64_t>(rows.size());
  packed.columns_ = checked_width(weight, columns);
  const std::vector<Columns> runs = merged(columns);
  packed.source_type_ = weight.type;
  packed.group_ = is_quantized(weight.type) ? fitting_group(weight.type, columns, packed.columns_) : 0;
  const PanelView panel = empty_panel(weight.type, packed.group_, packed.columns_);
  packed.buffer_ = Buffer(static_cast<size_t>(kernels::tiles(packed.rows_) * panel.tile_bytes));
  std::atomic<bool> bad = false;
  threads.for_each(kernels::tiles(packed.rows_), [&](int64_t tile, int) {
    TileWriter writer(panel, runs, packed.buffer_.data() + tile * panel.tile_bytes);
    for (int64_t lane = 0; lane < std::min(kTile, packed.rows_ - tile * kTile); ++lane) {
      const int64_t row = rows.empty() ? tile * kTile + lane : rows[static_cast<size_t>(tile * kTile + lane)];
      if (row >= 0 && writer.write(weight, row, lane)) bad = true;
    }
  });
  require(!bad, "weight: a {} matrix of shape [{}, {}] holds NaN or a scale out of range", name_of(weight.type),
          weight.rows, weight.columns);
  return packed;
}

PanelView PackedMatrix::panel() const {
  PanelView panel = empty_panel(source_type_, group_, columns_);
  panel.data = buffer_.data();
  return panel;
}

void PackedMatrix::decode_row(int64_t row, std::span<float> out) const {
  require(row >= 0 && row < rows_ && out.size() == static_cast<size_t>(columns_),
          "weight: row {} of {} is decoded into {} values of {}", row, rows_, out.size(), columns_);
  const PanelView tile = panel().from(row / kTile, 0);
  const int64_t lane = row % kTile;
  const auto info = kernels::info_of(tile.type);
  const auto* data = tile.data;
  for (int64_t k = 0; k < columns_; ++k) {
    float& value = out[static_cast<size_t>(k)];
    switch (tile.type) {
      case PanelType::f32:
        value = reinterpret_cast<const float*>(data)[k * kTile + lane];
        continue;
      case PanelType::bf16:
        value = static_cast<float>(reinterpret_cast<const BFloat16*>(data)[k * kTile + lane]);
        continue;
      case PanelType::f16:
        value = static_cast<float>(reinterpret_cast<const Float16*>(data)[k * kTile + lane]);
        continue;
      default:
        break;
    }
    const int64_t in_group = k % tile.group;
    const std::byte* header = data + k / tile.group * tile.bytes_of(tile.group);
    const std::byte* integers = header + info.header_bytes;
    const bool wide = tile.type == PanelType::i8_wide || tile.type == PanelType::u4_wide;
    const auto header_value = [&](int64_t index) {
      return wide ? reinterpret_cast<const float*>(header)[index]
                  : static_cast<float>(reinterpret_cast<const Float16*>(header)[index]);
    };
    if (tile.type == PanelType::i8) {
      value = static_cast<float>(static_cast<int8_t>(integers[in_group * kTile + lane])) * header_value(lane);
      continue;
    }
    const int integer = tile.type == PanelType::i8_wide
                            ? static_cast<int8_t>(integers[in_group * kTile + lane])
                            : std::to_integer<int>(integers[in_group / 2 * kTile + lane]) >> (in_group % 2 * 4) & 15;
    value = std::fma(static_cast<float>(integer), header_value(lane), header_value(kTile + lane));
  }
}

}  // namespace regard
