#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <type_traits>

#include "regard/dtype.h"
#include "regard/error.h"

namespace regard {

/// The sizes of a tensor's axes, outermost first; rank 0 is a scalar. Lives inline, never allocates. Thread safety: a
/// value.
class Shape {
 public:
  static constexpr size_t kMaxRank = 8;

  Shape() = default;
  /// Throws Error if there are more than kMaxRank sizes, one is negative, or their product overflows int64.
  Shape(std::initializer_list<int64_t> sizes) : Shape(std::span(sizes.begin(), sizes.size())) {}
  explicit Shape(std::span<const int64_t> sizes);

  [[nodiscard]] size_t rank() const { return rank_; }
  [[nodiscard]] int64_t operator[](size_t axis) const { return sizes_[axis]; }
  [[nodiscard]] const int64_t* begin() const { return sizes_.data(); }
  [[nodiscard]] const int64_t* end() const { return sizes_.data() + rank_; }
  /// The product of the sizes: 1 for a scalar.
  [[nodiscard]] int64_t elements() const;
  /// "[2, 37, 576]"
  [[nodiscard]] std::string to_string() const;

  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::array<int64_t, kMaxRank> sizes_{};
  size_t rank_ = 0;
};

/// A tensor in memory that something else owns and keeps alive: element type, shape, strides in elements. `Byte` is
/// std::byte or const std::byte.
///
/// Thread safety: a view is a value. Several threads may use views of one tensor as long as none writes what others
/// read.
template <class Byte>
class BasicTensorView {
 public:
  template <class T>
  using Element = std::conditional_t<std::is_const_v<Byte>, const T, T>;

  BasicTensorView() = default;
  /// Dense, in row-major order.
  BasicTensorView(Byte* data, DType dtype, const Shape& shape);
  /// With strides of its own, one an axis: any number of elements from one index to the next. Throws Error for another
  /// number of strides.
  BasicTensorView(Byte* data, DType dtype, const Shape& shape, std::span<const int64_t> strides);
  /// A dense view of typed elements.
  template <class T>
  BasicTensorView(T* data, const Shape& shape) requires(!std::is_same_v<std::remove_const_t<T>, std::byte>)
      : BasicTensorView(reinterpret_cast<Byte*>(data), kDTypeOf<std::remove_const_t<T>>, shape) {}
  /// A mutable view reads as a constant one.
  operator BasicTensorView<const std::byte>() const requires(!std::is_const_v<Byte>) {
    return BasicTensorView<const std::byte>(data_, dtype_, shape_, strides_);
  }

  [[nodiscard]] bool empty() const { return data_ == nullptr; }
  [[nodiscard]] Byte* data() const { return data_; }
  [[nodiscard]] DType dtype() const { return dtype_; }
  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] int64_t size(size_t axis) const { return shape_[axis]; }
  [[nodiscard]] int64_t stride(size_t axis) const { return strides_[axis]; }
  [[nodiscard]] bool is_dense() const;

  /// The first element, as T. Throws Error if the view holds another type.
  template <class T>
  [[nodiscard]] Element<T>* as() const {
    require_dtype(kDTypeOf<T>);
    return reinterpret_cast<Element<T>*>(data_);
  }
  /// All elements of a dense view, as T. Throws Error if the view is not dense or holds another type.
  template <class T>
  [[nodiscard]] std::span<Element<T>> elements() const {
    require_dense();
    return {as<T>(), static_cast<size_t>(shape_.elements())};
  }

  /// `count` indices of `axis` from `first` on. Throws Error if they are not all there.
  [[nodiscard]] BasicTensorView slice(size_t axis, int64_t first, int64_t count) const;
  /// The sub-tensor at `index` of axis 0; the rank falls by one. Throws Error if there is none.
  [[nodiscard]] BasicTensorView operator[](int64_t index) const;
  /// The same elements under another shape. Throws Error if the view is not dense or the counts differ.
  [[nodiscard]] BasicTensorView reshape(const Shape& shape) const;

 private:
  template <class>
  friend class BasicTensorView;
  BasicTensorView(Byte* data, DType dtype, const Shape& shape, const std::array<int64_t, Shape::kMaxRank>& strides)
      : data_(data), dtype_(dtype), shape_(shape), strides_(strides) {}
  void require_dtype(DType wanted) const;
  void require_dense() const;

  Byte* data_ = nullptr;
  DType dtype_ = DType::f32;
  Shape shape_;
  std::array<int64_t, Shape::kMaxRank> strides_{};
};

using TensorView = BasicTensorView<std::byte>;
using ConstTensorView = BasicTensorView<const std::byte>;

/// Zeroed memory at a multiple of kAlignment bytes. Large buffers are mapped, so that pages nobody touches cost
/// nothing. Thread safety: several threads may use its memory as long as none writes what others read.
class Buffer {
 public:
  static constexpr size_t kAlignment = 64;

  Buffer() = default;
  /// Throws std::bad_alloc when there is no memory.
  explicit Buffer(size_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] size_t size() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

/// A dense tensor that owns its elements, or shares their owner. Copies share the elements too.
///
/// Thread safety: several threads may copy a tensor, and use its elements as those of a view.
class Tensor {
 public:
  Tensor() = default;
  /// Elements of its own, zero at first.
  Tensor(DType dtype, const Shape& shape);
  /// The elements that `view` shows, in memory that `owner` keeps alive until the last copy is gone: of another
  /// library's tensor, or with a deleter of its own, std::shared_ptr<void>(data, deleter). Memory that may only be read
  /// is shown by a ConstTensorView, which all inputs are. Throws Error for a view that is not dense, and for elements
  /// that are not at a multiple of their size.
  [[nodiscard]] static Tensor adopt(TensorView view, std::shared_ptr<void> owner);

  [[nodiscard]] bool empty() const { return view_.empty(); }
  [[nodiscard]] DType dtype() const { return view_.dtype(); }
  [[nodiscard]] const Shape& shape() const { return view_.shape(); }
  [[nodiscard]] TensorView view() const { return view_; }
  operator TensorView() const { return view_; }
  operator ConstTensorView() const { return view_; }
  template <class T>
  [[nodiscard]] std::span<T> elements() const {
    return view_.elements<T>();
  }

 private:
  std::shared_ptr<void> owner_;
  TensorView view_;
};

/// A dense copy of `source` with elements of type `dtype`, rounded to nearest even. Floating types only.
/// Throws Error for other types.
[[nodiscard]] Tensor convert(ConstTensorView source, DType dtype);

}  // namespace regard
