#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/panel.h"
#include "linear/stored_matrix.h"
#include "regard/linear.h"
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

PanelView empty_panel(PanelType type, int64_t group, int64_t columns) {
  PanelView panel{.type = type, .group = static_cast<int32_t>(group)};
  panel.tile_bytes = panel.bytes_of(columns);
  return panel;
}

// The type that keeps scaled values: f16 scales without zeros fit the narrow header.
PanelType scaled_panel_type(const StoredMatrix& matrix) {
  if (matrix.values.type == WeightType::f8_e4m3) return PanelType::f32;
  const bool narrow =
      matrix.values.type == WeightType::i8 && matrix.scales.type == WeightType::f16 && matrix.zeros.empty();
  return narrow ? PanelType::i8 : PanelType::i8_wide;
}

// The panel of a matrix cut to `runs`. Its groups are the largest that fit between all cuts and into the kernels'
// blocks. Kernels take columns in pairs, so groups are even; f32 where groups would not take less memory.
PanelView panel_of(const StoredMatrix& matrix, std::span<const Columns> runs, int64_t columns, bool cut) {
  const PanelType type = matrix.scales.empty() ? panel_type_of(matrix.values.type) : scaled_panel_type(matrix);
  int64_t group = stored_group(matrix);
  if (group == 0 || type == PanelType::f32) return empty_panel(type, 0, columns);
  group = std::gcd(group, kernels::kBlock);
  if (matrix.order.empty() || cut)
    for (const Columns& run : runs) {
      if (run.first >= 0) group = std::gcd(group, run.first);
      group = std::gcd(group, run.count);
    }
  const PanelView f32 = empty_panel(PanelType::f32, 0, columns);
  // A group's columns lie anywhere.
  if (group % 2 != 0 || (cut && !matrix.order.empty())) return f32;
  const PanelView panel = empty_panel(type, group, columns);
  return panel.tile_bytes < f32.tile_bytes ? panel : f32;
}

// Writes row `lane` of a tile; true if the row holds what no weight may have: NaN, or a minimum that its header can't
// hold. Columns of zeros are left as they are: zero.
class TileWriter {
 public:
  TileWriter(const StoredMatrix& matrix, const Scales& scales, const PanelView& panel, std::span<const Columns> runs,
             std::byte* tile)
      : matrix_(matrix),
        scales_(scales),
        panel_(panel),
        info_(kernels::info_of(panel.type)),
        runs_(runs),
        tile_(tile) {}

  [[nodiscard]] bool write(std::span<const int64_t> rows) {
    if (matrix_.transposed) transposed_ = TransposedRows(matrix_.values, runs_, rows);
    bool bad = false;
    for (size_t lane = 0; lane < rows.size(); ++lane)
      if (rows[lane] >= 0) bad |= write_row(rows[lane], static_cast<int64_t>(lane));
    return bad;
  }

 private:
  bool write_row(int64_t row, int64_t lane) {
    bool bad = false;
    int64_t to = 0;
    for (const Columns& run : runs_) {
      if (run.first >= 0) {
        const Cover cover =
            matrix_.transposed ? transposed_.cover(lane, to, run.count) : cover_of(matrix_.values, row, run);
        bad |= matrix_.scales.empty() ? write_run(cover, run.count, to, lane) : write_scaled(cover, row, run, to, lane);
      }
      to += run.count;
    }
    return bad;
  }

  // Integers of 8 bits, u8 as 128 less, with the scale and the minimum that this leaves for them; or their numbers.
  bool write_scaled(const Cover& cover, int64_t row, const Columns& run, int64_t to, int64_t lane) {
    const float offset = matrix_.values.type == WeightType::u8 ? 128.0F : 0.0F;
    bool bad = false;
    for (int64_t k = 0; k < run.count; ++k) {
      const int64_t at = to + k;
      const float value = number_at(cover.row, cover.skipped + k);
      if (!panel_.is_grouped()) {
        const float number = (value - scales_.zero(row, run.first + k)) * scales_.scale(row, run.first + k);
        reinterpret_cast<float*>(tile_)[at * kTile + lane] = number;
        bad |= std::isnan(number);
        continue;
      }
      std::byte* header = tile_ + panel_.bytes_of(at / panel_.group * panel_.group);
      if (at % panel_.group == 0) {
        const float scale = scales_.scale(row, run.first + k);
        write_header(header, lane, scale, (offset - scales_.zero(row, run.first + k)) * scale);
        bad |= std::isnan(scale);
      }
      header[info_.header_bytes + at % panel_.group * kTile + lane] =
          static_cast<std::byte>(static_cast<int8_t>(value - offset));
    }
    return bad;
  }

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

  const StoredMatrix& matrix_;
  const Scales& scales_;
  const PanelView& panel_;
  kernels::PanelTypeInfo info_;
  std::span<const Columns> runs_;
  std::byte* tile_;
  TransposedRows transposed_;
  std::vector<int8_t> integers_;
  std::vector<float> values_;
  std::vector<float> minimums_;
};

void check_rows(const StoredMatrix& matrix, std::span<const int64_t> rows) {
  for (const int64_t row : rows)
    require(row >= -1 && row < matrix.rows(), "weight: row {} is asked for, expected -1 to {}", row, matrix.rows() - 1);
}

std::vector<Columns> columns_of_order(std::span<const int64_t> order) {
  std::vector<Columns> columns;
  for (const int64_t column : order) columns.push_back({.first = column, .count = 1});
  return columns;
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
int64_t checked_width(int64_t columns, std::span<const Columns> runs) {
  int64_t width = 0;
  for (const Columns& run : runs) {
    const bool there = run.first == -1 || (run.first >= 0 && run.first <= columns);
    const int64_t most = run.first == -1 ? std::numeric_limits<int32_t>::max() : columns - run.first;
    require(there && run.count >= 0 && run.count <= most, "weight: {} columns from {} are asked for, but there are {}",
            run.count, run.first, columns);
    width += run.count;
  }
  return width;
}

}  // namespace

PackedMatrix PackedMatrix::pack(const StoredMatrix& matrix, const Threads& threads, std::span<const int64_t> rows,
                                std::span<const Columns> columns) {
  matrix.check();
  check_rows(matrix, rows);
  const bool cut = !columns.empty();
  const Columns all{.first = 0, .count = matrix.columns()};
  std::vector<Columns> ordered;
  if (!cut) {
    ordered = columns_of_order(matrix.order);
    columns = ordered.empty() ? std::span(&all, 1) : std::span<const Columns>(ordered);
  }
  PackedMatrix packed;
  packed.rows_ = rows.empty() ? matrix.rows() : static_cast<int64_t>(rows.size());
  packed.columns_ = checked_width(matrix.columns(), columns);
  packed.source_type_ = matrix.values.type;
  const PanelView panel = panel_of(matrix, columns, packed.columns_, cut);
  packed.panel_type_ = panel.type;
  packed.group_ = panel.group;
  if (!ordered.empty()) packed.order_ = matrix.order;
  if (packed.columns_ == 0) return packed;
  const std::vector<Columns> runs = merged(columns);
  packed.buffer_ = Buffer(static_cast<size_t>(kernels::tiles(packed.rows_) * panel.tile_bytes));
  const Scales scales(matrix);
  std::atomic<bool> bad = false;
  threads.for_each(kernels::tiles(packed.rows_), [&](int64_t tile, int) {
    std::array<int64_t, kTile> of_tile;
    const auto lanes = static_cast<size_t>(std::min(kTile, packed.rows_ - tile * kTile));
    for (size_t lane = 0; lane < lanes; ++lane) {
      const int64_t row = tile * kTile + static_cast<int64_t>(lane);
      of_tile[lane] = rows.empty() ? row : rows[static_cast<size_t>(row)];
    }
    TileWriter writer(matrix, scales, panel, runs, packed.buffer_.data() + tile * panel.tile_bytes);
    if (writer.write(std::span(of_tile.data(), lanes))) bad = true;
  });
  require(!bad, "weight: a {} matrix of shape [{}, {}] holds NaN or a scale out of range", name_of(matrix.values.type),
          matrix.rows(), matrix.columns());
  return packed;
}

PanelView PackedMatrix::panel() const {
  PanelView panel = empty_panel(panel_type_, group_, columns_);
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
    float& value = out[static_cast<size_t>(order_.empty() ? k : order_[static_cast<size_t>(k)])];
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
