#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

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

PanelView empty_panel(WeightType type, int64_t columns) {
  PanelView panel{.type = panel_type_of(type), .group = static_cast<int32_t>(group_of(type))};
  panel.tile_bytes = panel.bytes_of(columns);
  return panel;
}

// Writes row `lane` of a tile; true if the row holds what no weight may have: NaN, or a minimum that its header can't
// hold.
class TileWriter {
 public:
  TileWriter(const PanelView& panel, int64_t columns, std::byte* tile)
      : panel_(panel), info_(kernels::info_of(panel.type)), columns_(columns), tile_(tile) {}

  [[nodiscard]] bool write(const WeightView& weight, int64_t row, int64_t lane) {
    if (panel_.is_grouped()) return write_groups(weight, row, lane);
    if (panel_.type == PanelType::f32) return write_f32(weight, row, lane);
    return write_halves(weight, row, lane);
  }

 private:
  bool write_f32(const WeightView& weight, int64_t row, int64_t lane) {
    values_.resize(static_cast<size_t>(columns_));
    decode_row(weight, row, values_);
    auto* out = reinterpret_cast<float*>(tile_) + lane;
    bool bad = false;
    for (int64_t k = 0; k < columns_; ++k) {
      out[k * kTile] = values_[static_cast<size_t>(k)];
      bad |= std::isnan(values_[static_cast<size_t>(k)]);
    }
    return bad;
  }

  bool write_halves(const WeightView& weight, int64_t row, int64_t lane) {
    const uint16_t infinity = panel_.type == PanelType::bf16 ? 0x7F80 : 0x7C00;
    const std::byte* from = weight.row(row).data();
    auto* out = reinterpret_cast<uint16_t*>(tile_) + lane;
    bool bad = false;
    for (int64_t k = 0; k < columns_; ++k) {
      uint16_t bits = 0;
      std::memcpy(&bits, from + k * 2, 2);
      out[k * kTile] = bits;
      bad |= (bits & 0x7FFF) > infinity;
    }
    return bad;
  }

  bool write_groups(const WeightView& weight, int64_t row, int64_t lane) {
    const int64_t group = panel_.group;
    integers_.resize(static_cast<size_t>(columns_));
    values_.resize(static_cast<size_t>(columns_ / group));
    minimums_.resize(values_.size());
    unpack_row(weight, row, {.integers = integers_, .scales = values_, .minimums = minimums_});
    bool bad = false;
    std::byte* header = tile_;
    for (int64_t g = 0; g < columns_ / group; ++g, header += panel_.bytes_of(group)) {
      const float scale = values_[static_cast<size_t>(g)];
      const float minimum = minimums_[static_cast<size_t>(g)];
      bad |= std::isnan(scale) || std::isnan(minimum);
      // The minimum of q4_0 is -8 times its scale, which may be more than an f16.
      if (panel_.type == PanelType::u4)
        bad |= std::isfinite(minimum) && !std::isfinite(static_cast<float>(Float16(minimum)));
      write_header(header, lane, scale, minimum);
      write_integers(header + info_.header_bytes, lane, integers_.data() + g * group, group);
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

  void write_integers(std::byte* out, int64_t lane, const int8_t* integers, int64_t group) const {
    if (panel_.type == PanelType::i8 || panel_.type == PanelType::i8_wide) {
      for (int64_t k = 0; k < group; ++k) out[k * kTile + lane] = static_cast<std::byte>(integers[k]);
      return;
    }
    for (int64_t k = 0; k < group; k += 2)
      out[k / 2 * kTile + lane] = static_cast<std::byte>(integers[k]) | static_cast<std::byte>(integers[k + 1]) << 4;
  }

  const PanelView& panel_;
  kernels::PanelTypeInfo info_;
  int64_t columns_;
  std::byte* tile_;
  std::vector<int8_t> integers_;
  std::vector<float> values_;
  std::vector<float> minimums_;
};

}  // namespace

PackedMatrix PackedMatrix::pack(const WeightView& weight, const Threads& threads, std::span<const int64_t> row_order) {
  require(row_order.empty() || row_order.size() == static_cast<size_t>(weight.rows),
          "weight: the order of {} rows has {} entries", weight.rows, row_order.size());
  for (const int64_t row : row_order)
    require(row >= 0 && row < weight.rows, "weight: the order of {} rows names row {}", weight.rows, row);
  PackedMatrix packed;
  packed.rows_ = weight.rows;
  packed.columns_ = weight.columns;
  packed.source_type_ = weight.type;
  const PanelView panel = empty_panel(weight.type, weight.columns);
  packed.buffer_ = Buffer(static_cast<size_t>(kernels::tiles(weight.rows) * panel.tile_bytes));
  std::atomic<bool> bad = false;
  threads.for_each(kernels::tiles(weight.rows), [&](int64_t tile, int) {
    TileWriter writer(panel, weight.columns, packed.buffer_.data() + tile * panel.tile_bytes);
    for (int64_t lane = 0; lane < std::min(kTile, weight.rows - tile * kTile); ++lane) {
      const int64_t row = tile * kTile + lane;
      if (writer.write(weight, row_order.empty() ? row : row_order[static_cast<size_t>(row)], lane)) bad = true;
    }
  });
  require(!bad, "weight: a {} matrix of shape [{}, {}] holds NaN or a scale out of range", name_of(weight.type),
          weight.rows, weight.columns);
  return packed;
}

PanelView PackedMatrix::panel() const {
  PanelView panel = empty_panel(source_type_, columns_);
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
