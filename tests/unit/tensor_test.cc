#include "regard/tensor.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

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

TEST(TensorView, HasStridesOfItsOwn) {
  const Tensor tensor = counting({2, 3, 4});
  // The last two axes change places, and every second index of the first of them is left out.
  const std::array<int64_t, 3> strides = {12, 2, 4};
  const TensorView turned(tensor.view().data(), DType::f32, {2, 2, 3}, strides);
  EXPECT_FALSE(turned.is_dense());
  EXPECT_EQ(*turned[1][1][2].as<float>(), 22.0F);
  EXPECT_EQ(turned.stride(1), 2);
  EXPECT_THROW(TensorView(tensor.view().data(), DType::f32, {2, 2}, strides), Error);
}

TEST(Tensor, AdoptsForeignMemoryAndKeepsItsOwner) {
  auto numbers = std::make_shared<std::vector<float>>(std::vector<float>{1, 2, 3, 4, 5, 6});
  const std::weak_ptr<std::vector<float>> watched = numbers;
  Tensor tensor = Tensor::adopt(TensorView(numbers->data(), {2, 3}), numbers);
  EXPECT_EQ(tensor.view().data(), reinterpret_cast<std::byte*>(numbers->data()));
  EXPECT_EQ(tensor.shape(), (Shape{2, 3}));
  EXPECT_EQ(tensor.elements<float>()[5], 6.0F);
  numbers.reset();
  Tensor copy = tensor;
  tensor = Tensor();
  EXPECT_FALSE(watched.expired()) << "a copy shares the owner";
  EXPECT_EQ(copy.elements<float>()[0], 1.0F);
  copy = Tensor();
  EXPECT_TRUE(watched.expired());
}

TEST(Tensor, AdoptsMemoryWithADeleter) {
  int deleted = 0;
  {
    float number = 7;
    const Tensor tensor =
        Tensor::adopt(TensorView(&number, {1}), std::shared_ptr<void>(&number, [&](void*) { ++deleted; }));
    EXPECT_EQ(tensor.elements<float>()[0], 7.0F);
    EXPECT_EQ(deleted, 0);
  }
  EXPECT_EQ(deleted, 1);
}

TEST(Tensor, AdoptsOnlyDenseAndAlignedMemory) {
  std::array<double, 12> memory{};
  auto* bytes = reinterpret_cast<std::byte*>(memory.data());
  const TensorView rows(bytes, DType::f32, {3, 4});
  EXPECT_THROW((void)Tensor::adopt(rows.slice(1, 0, 2), nullptr), Error);
  EXPECT_THROW((void)Tensor::adopt(TensorView(bytes + 2, DType::f32, {2}), nullptr), Error);
  EXPECT_EQ(Tensor::adopt(TensorView(bytes + 2, DType::bf16, {2}), nullptr).view().data(), bytes + 2);
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
