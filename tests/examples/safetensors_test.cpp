// SPDX-License-Identifier: Apache-2.0
#include "safetensors.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "mixtral_file.hpp"

namespace harvest::examples {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

namespace fs = std::filesystem;

class SafetensorsTest : public ::testing::Test {
 protected:
  SafetensorsTest() { fs::create_directories(folder_); }
  ~SafetensorsTest() override { fs::remove_all(folder_); }

  [[nodiscard]] std::string path(const std::string& name = "model.safetensors") const {
    return (folder_ / name).string();
  }
  std::string write(const std::string& content) const {
    std::ofstream(path(), std::ios::binary) << content;
    return path();
  }
  /// What is wrong with a file of this content, behind its name.
  [[nodiscard]] std::string complaint(const std::string& content) const {
    const auto file = SafetensorsFile::open(write(content));
    if (file) return "nothing";
    EXPECT_EQ(file.error().code, ErrorCode::malformed);
    const std::string named = path() + ": ";
    EXPECT_THAT(file.error().message, StartsWith(named));
    return file.error().message.substr(std::min(named.size(), file.error().message.size()));
  }

 private:
  fs::path folder_ =
      fs::path(::testing::TempDir()) / ("safetensors_test." + std::to_string(::getpid()) + "." +
                                        ::testing::UnitTest::GetInstance()->current_test_info()->name());
};

/// A file with this header, padded as writers do, and so many bytes of data: 0, 1, 2 ...
std::string file_of(std::string header, std::size_t data_bytes, bool padded = true) {
  if (padded) header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(header.size() >> 8 * i);
  file += header;
  for (std::size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return file;
}

/// A tensor's entry in a header.
std::string entry(std::string_view name, std::string_view dtype, std::string_view shape,
                  std::string_view offsets) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":{}}})", name, dtype, shape, offsets);
}

std::string header_of(const std::vector<std::string>& entries) {
  return fmt::format("{{{}}}", fmt::join(entries, ","));
}

/// A header of one tensor "a".
std::string one(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return header_of({entry("a", dtype, shape, offsets)});
}

TEST_F(SafetensorsTest, ReadsTensorsWhereTheyLie) {
  const std::string header =
      header_of({R"("__metadata__":{"format":"pt"})", entry("b", "I8", "[3]", "[8,11]"),
                 entry("a", "F32", "[1,2]", "[0,8]"), entry("none", "F64", "[0,9]", "[8,8]"),
                 entry("scalar", "U8", "[]", "[11,12]")});
  const auto file = SafetensorsFile::open(write(file_of(header, 12)));
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->tensors().size(), 4U);
  const Tensor* a = file->find("a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->dtype, "F32");
  EXPECT_THAT(a->shape, ElementsAre(1, 2));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(a->bytes.data()) % alignof(float), 0U);
  EXPECT_THAT(file->find("b")->bytes, ElementsAre(std::byte{8}, std::byte{9}, std::byte{10}));
  EXPECT_THAT(file->find("scalar")->bytes, ElementsAre(std::byte{11}));
  EXPECT_TRUE(file->find("none")->bytes.empty());
  EXPECT_EQ(file->find("c"), nullptr);
}

TEST_F(SafetensorsTest, AnEmptyFileOfTensorsIsOne) {
  EXPECT_EQ(complaint(file_of("{}", 0)), "nothing");
}

TEST_F(SafetensorsTest, MovesWithItsMapping) {
  auto first = SafetensorsFile::open(write(file_of(one("U8", "[4]", "[0,4]"), 4)));
  ASSERT_TRUE(first);
  SafetensorsFile second = std::move(*first);
  auto other = SafetensorsFile::open(path());
  ASSERT_TRUE(other);
  *other = std::move(second);
  EXPECT_EQ(other->find("a")->bytes[3], std::byte{3});
}

TEST_F(SafetensorsTest, SaysWhichFileIsNotThere) {
  const auto missing = SafetensorsFile::open(path("missing"));
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::not_found);
  EXPECT_EQ(missing.error().message, path("missing") + ": No such file or directory");
  const auto folder = SafetensorsFile::open(path(""));
  ASSERT_FALSE(folder);
  EXPECT_EQ(folder.error().code, ErrorCode::unavailable);
  EXPECT_EQ(folder.error().message, path("") + ": it is not a file");
}

TEST_F(SafetensorsTest, RefusesABrokenFrame) {
  EXPECT_EQ(complaint(""), "it has 0 bytes, the header's length alone takes 8");
  EXPECT_EQ(complaint("1234567"), "it has 7 bytes, the header's length alone takes 8");
  EXPECT_EQ(complaint(std::string(8, '\0')), "its header begins with '' and not with '{'");
  EXPECT_EQ(complaint(std::string(8, '\xff')),
            "its header is said to have 18446744073709551615 bytes, the limit is 0, where the file ends");
  EXPECT_EQ(complaint(file_of("{}", 0).substr(0, 15)),
            "its header is said to have 8 bytes, the limit is 7, where the file ends");
  EXPECT_EQ(complaint(file_of(" {}", 0)), "its header begins with ' ' and not with '{'");
  EXPECT_EQ(complaint(file_of("[]", 0)), "its header begins with '[' and not with '{'");
}

TEST_F(SafetensorsTest, RefusesAHeaderThatNoModelHas) {
  const std::string length("\x01\xe1\xf5\x05\0\0\0\0", 8);  // 100,000,001
  write(length);
  fs::resize_file(path(), 200'000'000);  // a hole, which takes no room
  const auto file = SafetensorsFile::open(path());
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().message,
            path() + ": its header is said to have 100000001 bytes, the limit is 100000000");
}

TEST_F(SafetensorsTest, RefusesWhatIsNotJson) {
  EXPECT_THAT(complaint(file_of("{", 0)), StartsWith("its header: not JSON: parse error at line 1, column"));
  EXPECT_THAT(complaint(file_of("{}}", 0)), StartsWith("its header: not JSON: parse error"));
  EXPECT_THAT(complaint(file_of("{\"\xff\":1}", 0)), StartsWith("its header: not JSON: parse error"));
  EXPECT_THAT(complaint(file_of(R"({"a":1e999})", 0)), StartsWith("its header: not JSON: number overflow"));
  const std::string deep = "{\"a\":" + std::string(100'000, '[');
  EXPECT_THAT(complaint(file_of(deep, 0)), StartsWith("its header: not JSON: parse error"));
  EXPECT_LT(complaint(file_of(deep, 0)).size(), 300U);
}

TEST_F(SafetensorsTest, RefusesWhatTwoReadersSeeDifferently) {
  const std::string a = entry("a", "U8", "[1]", "[0,1]");
  EXPECT_EQ(complaint(file_of(header_of({a, a}), 1)), "its header: 'a' is there twice");
  EXPECT_EQ(complaint(file_of(R"({"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1)),
            "its header: 'dtype' is there twice");
  EXPECT_EQ(complaint(file_of(R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1)),
            "its header: values are nested deeper than 3");
}

TEST_F(SafetensorsTest, RefusesFieldsThatAreNotThose) {
  EXPECT_EQ(complaint(file_of(R"({"a":[1]})", 1)), "tensor 'a': it is [1], it must be an object");
  EXPECT_EQ(complaint(file_of(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1)),
            "tensor 'a': dtype is missing");
  EXPECT_EQ(complaint(file_of(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1)),
            "tensor 'a': shape is missing");
  EXPECT_EQ(complaint(file_of(R"({"a":{"dtype":"U8","shape":[1]}})", 1)),
            "tensor 'a': data_offsets is missing");
  EXPECT_EQ(complaint(file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})", 1)),
            "tensor 'a': unknown field 'x'; known are dtype, shape and data_offsets");
  EXPECT_EQ(complaint(file_of(R"({"__metadata__":{"a":1}})", 0)),
            "__metadata__ is {\"a\":1}, it must be an object of strings");
  EXPECT_EQ(complaint(file_of(R"({"__metadata__":"a"})", 0)),
            "__metadata__ is \"a\", it must be an object of strings");
}

TEST_F(SafetensorsTest, RefusesADtypeThatIsNotKnown) {
  EXPECT_THAT(complaint(file_of(one("F31", "[1]", "[0,4]"), 4)),
              StartsWith("tensor 'a': dtype is 'F31'; known are BOOL, "));
  EXPECT_EQ(complaint(file_of(R"({"a":{"dtype":32,"shape":[1],"data_offsets":[0,4]}})", 4)),
            "tensor 'a': dtype is 32, it must be a string");
}

TEST_F(SafetensorsTest, RefusesShapesThatAreNone) {
  EXPECT_EQ(complaint(file_of(one("U8", "1", "[0,1]"), 1)),
            "tensor 'a': shape is 1, it must be an array of whole numbers");
  EXPECT_EQ(complaint(file_of(one("U8", "[-1]", "[0,1]"), 1)),
            "tensor 'a': shape is [-1], it must be an array of whole numbers");
  EXPECT_EQ(complaint(file_of(one("U8", "[1.0]", "[0,1]"), 1)),
            "tensor 'a': shape is [1.0], it must be an array of whole numbers");
  EXPECT_EQ(complaint(file_of(one("U8", "[18446744073709551616]", "[0,1]"), 1)),
            "tensor 'a': shape is [1.8446744073709552e+19], it must be an array of whole numbers");
  EXPECT_EQ(complaint(file_of(one("F32", "[4294967296,4294967296]", "[0,4]"), 4)),
            "tensor 'a': its shape has more than 2^64 bits");
  EXPECT_EQ(complaint(file_of(one("F4", "[3]", "[0,1]"), 1)),
            "tensor 'a': its shape of F4 has 12 bits, which is not a whole number of bytes");
  EXPECT_EQ(complaint(file_of(one("F4", "[4294967296,4294967296,0]", "[0,0]"), 0)), "nothing");
}

TEST_F(SafetensorsTest, RefusesOffsetsThatAreNone) {
  EXPECT_EQ(complaint(file_of(one("U8", "[1]", "[0]"), 1)),
            "tensor 'a': data_offsets has 1 numbers, it must have 2");
  EXPECT_EQ(complaint(file_of(one("U8", "[1]", "[0,1,1]"), 1)),
            "tensor 'a': data_offsets has 3 numbers, it must have 2");
  EXPECT_EQ(complaint(file_of(one("U8", "[1]", "[-1,0]"), 1)),
            "tensor 'a': data_offsets is [-1,0], it must be an array of whole numbers");
  EXPECT_EQ(complaint(file_of(one("U8", "[1]", "[1,0]"), 1)),
            "tensor 'a': data_offsets begin at 1 and end before, at 0");
  EXPECT_EQ(complaint(file_of(one("U8", "[2]", "[0,2]"), 1)),
            "tensor 'a': data_offsets end at 2, the file has 1 bytes behind its header");
  EXPECT_EQ(complaint(file_of(one("U8", "[1]", "[18446744073709551614,18446744073709551615]"), 1)),
            "tensor 'a': data_offsets end at 18446744073709551615, the file has 1 bytes behind its header");
  EXPECT_EQ(complaint(file_of(one("F16", "[2,3]", "[0,11]"), 12)),
            "tensor 'a': data_offsets span 11 bytes, its shape of F16 has 12");
}

TEST_F(SafetensorsTest, RefusesBytesOfTwoTensorsAndOfNone) {
  const auto two = [](std::string_view a, std::string_view b, std::string_view shape_b = "[4]") {
    return header_of({entry("a", "U8", "[4]", a), entry("b", "U8", shape_b, b)});
  };
  EXPECT_EQ(complaint(file_of(two("[0,4]", "[4,8]"), 8)), "nothing");
  EXPECT_EQ(complaint(file_of(two("[0,4]", "[3,7]"), 7)),
            "tensor 'b' begins at byte 3 behind the header, the one before it ends at 4: they overlap");
  EXPECT_EQ(complaint(file_of(two("[0,4]", "[0,4]"), 4)),
            "tensor 'b' begins at byte 0 behind the header, the one before it ends at 4: they overlap");
  EXPECT_EQ(complaint(file_of(two("[0,4]", "[2,2]", "[0]"), 4)),
            "tensor 'b' begins at byte 2 behind the header, the one before it ends at 4: they overlap");
  EXPECT_EQ(complaint(file_of(two("[5,9]", "[0,4]"), 9)),
            "tensor 'a' begins at byte 5 behind the header, the one before it ends at 4: a hole");
  EXPECT_EQ(complaint(file_of(two("[1,5]", "[5,9]"), 9)),
            "tensor 'a' begins at byte 1 behind the header, the one before it ends at 0: a hole");
  EXPECT_EQ(complaint(file_of(two("[0,4]", "[4,8]"), 9)),
            "its tensors end at byte 8 behind the header, the file has 9 there");
}

TEST_F(SafetensorsTest, RefusesElementsThatAreNotAligned) {
  const std::string unpadded = one("F32", "[1]", "[0,4]");
  ASSERT_NE(unpadded.size() % 4, 0U);
  EXPECT_EQ(
      complaint(file_of(unpadded, 4, /*padded=*/false)),
      fmt::format("tensor 'a': it begins at byte {} of the file, F32 needs a multiple of 4 (current writers "
                  "see to that)",
                  8 + unpadded.size()));
  const std::string behind_a_byte =
      header_of({entry("a", "U8", "[1]", "[0,1]"), entry("b", "BF16", "[1]", "[1,3]")});
  EXPECT_THAT(complaint(file_of(behind_a_byte, 3)), HasSubstr("BF16 needs a multiple of 2"));
}

TEST_F(SafetensorsTest, ComplaintsAreSentencesWhateverTheNames) {
  const std::string name = std::string(79, 'x') + "\xf0\x9f\x98\x80" + std::string(10'000, 'y');
  const std::string said = complaint(file_of("{\"" + name + "\":1}", 0));
  EXPECT_EQ(said, "tensor '" + std::string(79, 'x') + "...': it is 1, it must be an object");
  EXPECT_EQ(complaint(file_of(R"({"a\u001b[2J\n":1})", 0)), "tensor 'a?[2J?': it is 1, it must be an object");
}

TEST_F(SafetensorsTest, WritesWhatItReads) {
  std::vector<std::byte> bytes(15);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 17);
  Tensors tensors;  // in an order in which the wider ones would not be aligned
  tensors["a"] = {.dtype = "U8", .shape = {3}, .bytes = std::span(bytes).first(3)};
  tensors["b"] = {.dtype = "F32", .shape = {1, 2}, .bytes = std::span(bytes).subspan(3, 8)};
  tensors["c"] = {.dtype = "BF16", .shape = {2}, .bytes = std::span(bytes).subspan(11, 4)};
  tensors["d"] = {.dtype = "F64", .shape = {0}, .bytes = {}};
  ASSERT_TRUE(write_safetensors(path(), tensors));
  const auto file = SafetensorsFile::open(path());
  ASSERT_TRUE(file) << file.error().message;
  ASSERT_EQ(file->tensors().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const Tensor* read = file->find(name);
    ASSERT_NE(read, nullptr) << name;
    EXPECT_EQ(read->dtype, tensor.dtype);
    EXPECT_EQ(read->shape, tensor.shape);
    EXPECT_TRUE(std::ranges::equal(read->bytes, tensor.bytes)) << name;
  }
}

TEST_F(SafetensorsTest, WritesNothingThatItWouldRefuse) {
  const std::vector<std::byte> bytes(3);
  const auto wrong = write_safetensors(path(), {{"a", {.dtype = "F16", .shape = {2}, .bytes = bytes}}});
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().message, "tensor 'a': it has 3 bytes, its shape of F16 has 4");
  EXPECT_FALSE(write_safetensors(path(), {{"a", {.dtype = "F17", .shape = {2}, .bytes = bytes}}}));
  EXPECT_FALSE(fs::exists(path()));
  const auto nowhere = write_safetensors(path("no/such/folder"), {});
  ASSERT_FALSE(nowhere);
  EXPECT_EQ(nowhere.error().code, ErrorCode::unavailable);
}

TEST_F(SafetensorsTest, TheGeneratedFileHasMixtralsNamesAndShapes) {
  const MixtralShape shape{.layers = 2, .experts = 3, .hidden = 8, .intermediate = 16};
  ASSERT_TRUE(generate_mixtral_file(path(), shape));
  const auto file = SafetensorsFile::open(path());
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->tensors().size(), 2U * (3 * 3 + 1));
  const Tensor* down = file->find("model.layers.1.block_sparse_moe.experts.2.w2.weight");
  ASSERT_NE(down, nullptr);
  EXPECT_EQ(down->dtype, "BF16");
  EXPECT_THAT(down->shape, ElementsAre(8, 16));
  EXPECT_THAT(file->find("model.layers.0.block_sparse_moe.gate.weight")->shape, ElementsAre(3, 8));
  const Tensor* other = file->find("model.layers.0.block_sparse_moe.experts.2.w2.weight");
  EXPECT_FALSE(std::ranges::equal(down->bytes, other->bytes));
}

}  // namespace
}  // namespace harvest::examples
