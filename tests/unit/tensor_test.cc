#include "regard/tensor.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <numeric>

namespace regard {
namespace {

Tensor counting(const Shape& shape) {
  Tensor tensor(DType::f32, shape);
  const auto elements = tensor.elements<float>();
  std::iota(elements.begin(), elements.end(), 0.0F);
  return tensor;
}

TEST(Shape, RefusesNegativeSizesTooManyAxesAndOverflow) {
  EXPECT_THROW((Shape{2, -1}), Error);
  EXPECT_THROW((Shape{1, 1, 1, 1, 1, 1, 1, 1, 1}), Error);
  EXPECT_THROW((Shape{int64_t{1} << 32, int64_t{1} << 32}), Error);
  // A zero does not hide an overflow of the other sizes.
  EXPECT_THROW((Shape{0, int64_t{1} << 32, int64_t{1} << 32}), Error);
}

TEST(Tensor, StartsAsAlignedZerosSmallAndLarge) {
  for (const int64_t count : {1, 1000, 1 << 20}) {
    const Tensor tensor(DType::f32, {count});
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.view().data()) % Buffer::kAlignment, 0U);
    for (const float value : tensor.elements<float>()) ASSERT_EQ(value, 0.0F);
  }
}

TEST(TensorView, SlicesAndIndexesWithoutCopy) {
  const Tensor tensor = counting({2, 3, 4});
  const TensorView middle = tensor.view().slice(1, 1, 1);
  EXPECT_EQ(middle.shape(), (Shape{2, 1, 4}));
  EXPECT_FALSE(middle.is_dense());
  EXPECT_EQ(middle[1][0].elements<float>()[2], 18.0F);
  middle[1][0].elements<float>()[2] = -1.0F;
  EXPECT_EQ(tensor.elements<float>()[18], -1.0F);
}

TEST(TensorView, RefusesWhatIsNotThere) {
  const Tensor tensor = counting({2, 3});
  EXPECT_THROW((void)tensor.view().slice(0, 1, 2), Error);
  EXPECT_THROW((void)tensor.view().slice(2, 0, 1), Error);
  EXPECT_THROW((void)tensor.view().slice(0, std::numeric_limits<int64_t>::max(), 1), Error);
  EXPECT_THROW((void)tensor.view()[2], Error);
  EXPECT_THROW((void)tensor.view().as<double>(), Error);
  EXPECT_THROW((void)tensor.view().reshape({5}), Error);
  EXPECT_THROW((void)tensor.view().slice(1, 0, 2).elements<float>(), Error);
}

TEST(Tensor, ConvertsStridedViewsBetweenFloatingTypes) {
  const Tensor tensor = counting({2, 3});
  const Tensor narrow = convert(tensor.view().slice(1, 1, 2), DType::bf16);
  EXPECT_EQ(narrow.shape(), (Shape{2, 2}));
  EXPECT_EQ(static_cast<float>(narrow.elements<BFloat16>()[3]), 5.0F);
  EXPECT_THROW((void)convert(tensor, DType::i32), Error);
}

}  // namespace
}  // namespace regard
