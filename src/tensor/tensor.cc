#include "regard/tensor.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "tensor/fail.h"

namespace regard {
namespace {

// Buffers of this size and more come from mmap: the kernel zeroes their pages when they are first touched.
constexpr size_t kMappedBytes = size_t{1} << 20;
// From here on huge pages save more address look-ups than the part of the last one that nobody touches costs.
constexpr size_t kHugePageBytes = size_t{1} << 24;

std::array<int64_t, Shape::kMaxRank> dense_strides(const Shape& shape) {
  std::array<int64_t, Shape::kMaxRank> strides{};
  int64_t stride = 1;
  for (size_t axis = shape.rank(); axis-- > 0;) {
    strides[axis] = stride;
    stride *= shape[axis];
  }
  return strides;
}

}  // namespace

Shape::Shape(std::span<const int64_t> sizes) : rank_(sizes.size()) {
  require(sizes.size() <= kMaxRank, "shape has {} axes, expected at most {}", sizes.size(), kMaxRank);
  int64_t product = 1;
  for (size_t axis = 0; axis < rank_; ++axis) {
    require(sizes[axis] >= 0, "shape has size {} on axis {}, expected 0 or more", sizes[axis], axis);
    require(!__builtin_mul_overflow(product, std::max<int64_t>(sizes[axis], 1), &product),
            "shape has more elements than 64 bits can count");
    sizes_[axis] = sizes[axis];
  }
}

int64_t Shape::elements() const {
  int64_t product = 1;
  for (const int64_t size : *this) product *= size;
  return product;
}

std::string Shape::to_string() const { return fmt::format("[{}]", fmt::join(begin(), end(), ", ")); }

template <class Byte>
BasicTensorView<Byte>::BasicTensorView(Byte* data, DType dtype, const Shape& shape)
    : data_(data), dtype_(dtype), shape_(shape), strides_(dense_strides(shape)) {}

template <class Byte>
BasicTensorView<Byte>::BasicTensorView(Byte* data, DType dtype, const Shape& shape, std::span<const int64_t> strides)
    : data_(data), dtype_(dtype), shape_(shape) {
  require(strides.size() == shape.rank(), "tensor of shape {} has {} strides, expected one an axis", shape,
          strides.size());
  std::ranges::copy(strides, strides_.begin());
}

template <class Byte>
bool BasicTensorView<Byte>::is_dense() const {
  const auto dense = dense_strides(shape_);
  for (size_t axis = 0; axis < shape_.rank(); ++axis)
    if (shape_[axis] > 1 && strides_[axis] != dense[axis]) return false;
  return true;
}

template <class Byte>
BasicTensorView<Byte> BasicTensorView<Byte>::slice(size_t axis, int64_t first, int64_t count) const {
  require(axis < shape_.rank(), "slice: axis is {}, but the tensor has shape {}", axis, shape_);
  require(first >= 0 && count >= 0 && first <= shape_[axis] && count <= shape_[axis] - first,
          "slice: {} indices from {} of axis {} are not inside shape {}", count, first, axis, shape_);
  std::array<int64_t, Shape::kMaxRank> sizes{};
  std::copy(shape_.begin(), shape_.end(), sizes.begin());
  sizes[axis] = count;
  return BasicTensorView(data_ + first * strides_[axis] * static_cast<int64_t>(size_of(dtype_)), dtype_,
                         Shape(std::span(sizes.data(), shape_.rank())), strides_);
}

template <class Byte>
BasicTensorView<Byte> BasicTensorView<Byte>::operator[](int64_t index) const {
  const auto row = slice(0, index, 1);
  std::array<int64_t, Shape::kMaxRank> strides{};
  std::copy(strides_.begin() + 1, strides_.end(), strides.begin());
  return BasicTensorView(row.data_, dtype_, Shape(std::span(shape_.begin() + 1, shape_.end())), strides);
}

template <class Byte>
BasicTensorView<Byte> BasicTensorView<Byte>::reshape(const Shape& shape) const {
  require_dense();
  require(shape.elements() == shape_.elements(), "reshape: shape {} has {} elements, but {} has {}", shape,
          shape.elements(), shape_, shape_.elements());
  return BasicTensorView(data_, dtype_, shape);
}

template <class Byte>
void BasicTensorView<Byte>::require_dtype(DType wanted) const {
  require(dtype_ == wanted, "tensor has dtype {}, expected {}", name_of(dtype_), name_of(wanted));
}

template <class Byte>
void BasicTensorView<Byte>::require_dense() const {
  require(is_dense(), "tensor of shape {} is not dense", shape_);
}

template class BasicTensorView<std::byte>;
template class BasicTensorView<const std::byte>;

Buffer::Buffer(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  if (bytes >= kMappedBytes) {
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    if (bytes >= kHugePageBytes) madvise(mapped, bytes, MADV_HUGEPAGE);
    data_ = static_cast<std::byte*>(mapped);
    return;
  }
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  data_ = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_, 0, rounded);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Buffer::~Buffer() {
  if (bytes_ >= kMappedBytes)
    munmap(data_, bytes_);
  else
    std::free(data_);
}

Tensor::Tensor(DType dtype, const Shape& shape) {
  const auto elements = static_cast<size_t>(std::max<int64_t>(shape.elements(), 1));
  const auto buffer = std::make_shared<Buffer>(elements * size_of(dtype));
  view_ = TensorView(buffer->data(), dtype, shape);
  owner_ = buffer;
}

Tensor Tensor::adopt(TensorView view, std::shared_ptr<void> owner) {
  require(view.is_dense(), "adopt: the view of shape {} is not dense", view.shape());
  require(reinterpret_cast<uintptr_t>(view.data()) % size_of(view.dtype()) == 0,
          "adopt: elements of dtype {} are not at a multiple of {} bytes", name_of(view.dtype()),
          size_of(view.dtype()));
  Tensor tensor;
  tensor.view_ = view;
  tensor.owner_ = std::move(owner);
  return tensor;
}

namespace {

// Calls `visit(T{})` with the C++ type of a floating DType.
template <class Visit>
void with_float_type(DType dtype, Visit visit) {
  switch (dtype) {
    case DType::f32:
      return visit(float{});
    case DType::f64:
      return visit(double{});
    case DType::bf16:
      return visit(BFloat16{});
    case DType::f16:
      return visit(Float16{});
    case DType::f8_e4m3:
      return visit(Float8E4M3{});
    case DType::f8_e5m2:
      return visit(Float8E5M2{});
    default:
      fail("convert: dtype is {}, expected a floating type", name_of(dtype));
  }
}

template <class From, class To>
void convert_axis(ConstTensorView source, To*& out) {
  if (source.shape().rank() == 0) {
    if constexpr (std::is_same_v<From, double> && std::is_same_v<To, double>)
      *out++ = *source.as<double>();
    else
      *out++ = static_cast<To>(static_cast<float>(*source.as<From>()));
    return;
  }
  for (int64_t i = 0; i < source.size(0); ++i) convert_axis<From, To>(source[i], out);
}

}  // namespace

Tensor convert(ConstTensorView source, DType dtype) {
  Tensor result(dtype, source.shape());
  with_float_type(source.dtype(), [&](auto from) {
    with_float_type(dtype, [&](auto to) {
      auto* out = result.view().as<decltype(to)>();
      convert_axis<decltype(from)>(source, out);
    });
  });
  return result;
}

}  // namespace regard
