// SPDX-License-Identifier: Apache-2.0
#include "safetensors.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

namespace harvest::examples {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMostHeaderBytes = 100'000'000;  // as other readers have it
constexpr int kMostDepth = 3;                            // the document, a tensor, its shape
constexpr std::string_view kMetadata = "__metadata__";

struct Dtype {
  std::string_view name;
  std::uint32_t bits;
};
constexpr std::array kDtypes{
    Dtype{"BOOL", 8}, Dtype{"F4", 4},      Dtype{"F6_E2M3", 6}, Dtype{"F6_E3M2", 6}, Dtype{"U8", 8},
    Dtype{"I8", 8},   Dtype{"F8_E5M2", 8}, Dtype{"F8_E4M3", 8}, Dtype{"F8_E8M0", 8}, Dtype{"I16", 16},
    Dtype{"U16", 16}, Dtype{"F16", 16},    Dtype{"BF16", 16},   Dtype{"I32", 32},    Dtype{"U32", 32},
    Dtype{"F32", 32}, Dtype{"C64", 64},    Dtype{"F64", 64},    Dtype{"I64", 64},    Dtype{"U64", 64},
};

const Dtype* find_dtype(std::string_view name) {
  const auto found = std::ranges::find(kDtypes, name, &Dtype::name);
  return found == kDtypes.end() ? nullptr : &*found;
}

/// For a message: the beginning of what is long, and nothing that moves a terminal's cursor.
std::string shown(std::string_view text) {
  constexpr std::size_t kMostBytes = 80;
  std::size_t end = std::min(text.size(), kMostBytes);
  if (end < text.size())
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;  // within a character
  std::string line(text.substr(0, end));
  for (char& c : line)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  return end < text.size() ? line + "..." : line;
}

std::string shown_value(const Json& value) {
  const auto is_structured = [](const Json& part) { return part.is_structured(); };
  if (value.is_structured() && std::any_of(value.begin(), value.end(), is_structured))
    return fmt::format("a JSON {}", value.type_name());
  return shown(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

template <typename... Arguments>
tl::unexpected<Error> malformed(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  return fail(ErrorCode::malformed, fmt::format(format, std::forward<Arguments>(arguments)...));
}

/// The library keeps the last of two values of one name, so a reader that does not look sees one tensor where
/// another reader sees the other. It also nests as deep as a file says.
Result<Json> parse_header(std::string_view text) {
  Status judged;
  std::vector<std::set<std::string>> names;  // of each object that is open
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (!judged) return false;  // the rest is only read over
    if (depth >= kMostDepth && (event == Event::object_start || event == Event::array_start))
      judged = malformed("values are nested deeper than {}", kMostDepth);
    else if (event == Event::object_start)
      names.emplace_back();
    else if (event == Event::object_end)
      names.pop_back();
    else if (event == Event::key && !names.back().insert(parsed.get<std::string>()).second)
      judged = malformed("'{}' is there twice", shown(parsed.get<std::string>()));
    return judged.has_value();
  };
  try {
    Json header = Json::parse(text, watch);
    if (!judged) return tl::unexpected(judged.error());
    return header;
  } catch (const Json::exception& error) {  // a parse_error, or out_of_range for a number like 1e999
    // Its sentence begins with its own code, and may show what was read last, however long that is.
    std::string_view what = error.what();
    what.remove_prefix(std::min(what.find("] ") + 2, what.size()));
    return malformed("not JSON: {}", shown(what.substr(0, what.find("; last read: "))));
  }
}

/// A field that is an array of whole numbers from 0 to 2^64 - 1.
Result<std::vector<std::uint64_t>> read_numbers(const Json& fields, const char* name) {
  const Json& value = fields[name];
  const auto is_number = [](const Json& part) { return part.is_number_unsigned(); };
  if (!value.is_array() || !std::all_of(value.begin(), value.end(), is_number))
    return malformed("{} is {}, it must be an array of whole numbers", name, shown_value(value));
  return value.get<std::vector<std::uint64_t>>();
}

Status check_fields(const Json& fields) {
  if (!fields.is_object()) return malformed("it is {}, it must be an object", shown_value(fields));
  constexpr std::array<const char*, 3> kFields{"dtype", "shape", "data_offsets"};
  for (const char* name : kFields)
    if (!fields.contains(name)) return malformed("{} is missing", name);
  for (const auto& [name, value] : fields.items())
    if (std::ranges::find(kFields, name) == kFields.end())
      return malformed("unknown field '{}'; known are dtype, shape and data_offsets", shown(name));
  return {};
}

/// One tensor of the header. `data` are the file's bytes behind the header, which end at its end.
Result<Tensor> read_tensor(const Json& fields, std::span<const std::byte> data) {
  if (Status good = check_fields(fields); !good) return tl::unexpected(good.error());
  if (!fields["dtype"].is_string())
    return malformed("dtype is {}, it must be a string", shown_value(fields["dtype"]));
  auto shape = read_numbers(fields, "shape");
  if (!shape) return tl::unexpected(shape.error());
  const auto offsets = read_numbers(fields, "data_offsets");
  if (!offsets) return tl::unexpected(offsets.error());
  if (offsets->size() != 2) return malformed("data_offsets has {} numbers, it must have 2", offsets->size());

  Tensor tensor{.dtype = fields["dtype"].get<std::string>(), .shape = std::move(*shape), .bytes = {}};
  const auto bytes = tensor_bytes(tensor.dtype, tensor.shape);
  if (!bytes) return malformed("{}", bytes.error().message);
  const std::uint64_t begin = offsets->front();
  const std::uint64_t end = offsets->back();
  if (begin > end) return malformed("data_offsets begin at {} and end before, at {}", begin, end);
  if (end > data.size())
    return malformed("data_offsets end at {}, the file has {} bytes behind its header", end, data.size());
  if (end - begin != *bytes)
    return malformed("data_offsets span {} bytes, its shape of {} has {}", end - begin, tensor.dtype, *bytes);
  tensor.bytes = data.subspan(begin, end - begin);
  return tensor;
}

/// Who reads the elements where they lie needs them at addresses that their size divides.
Status check_alignment(const Tensor& tensor, const std::byte* file) {
  const std::uint64_t element_bytes = std::max(1U, find_dtype(tensor.dtype)->bits / 8);
  const auto place = static_cast<std::uint64_t>(tensor.bytes.data() - file);
  if (place % element_bytes == 0) return {};
  return malformed(
      "it begins at byte {} of the file, {} needs a multiple of {} (current writers see to that)", place,
      tensor.dtype, element_bytes);
}

/// Each byte behind the header is of exactly one tensor.
Status check_cover(const Tensors& tensors, std::span<const std::byte> data) {
  std::vector<const Tensors::value_type*> order;
  for (const auto& tensor : tensors) order.push_back(&tensor);
  std::ranges::sort(order, [](const auto* a, const auto* b) {
    const auto place = [](const auto* of) {
      return std::pair(of->second.bytes.data(), of->second.bytes.size());
    };
    return place(a) < place(b);
  });
  std::uint64_t covered = 0;
  for (const auto* tensor : order) {
    const auto begin = static_cast<std::uint64_t>(tensor->second.bytes.data() - data.data());
    if (begin != covered)
      return malformed("tensor '{}' begins at byte {} behind the header, the one before it ends at {}: {}",
                       shown(tensor->first), begin, covered, begin < covered ? "they overlap" : "a hole");
    covered += tensor->second.bytes.size();
  }
  if (covered == data.size()) return {};
  return malformed("its tensors end at byte {} behind the header, the file has {} there", covered,
                   data.size());
}

Status check_metadata(const Json& metadata) {
  const auto is_string = [](const Json& value) { return value.is_string(); };
  if (metadata.is_object() && std::all_of(metadata.begin(), metadata.end(), is_string)) return {};
  return malformed("{} is {}, it must be an object of strings", kMetadata, shown_value(metadata));
}

Result<Tensors> read_header(const Json& header, std::span<const std::byte> file,
                            std::span<const std::byte> data) {
  Tensors tensors;
  for (const auto& [name, fields] : header.items()) {
    if (name == kMetadata) {
      if (Status good = check_metadata(fields); !good) return tl::unexpected(good.error());
      continue;
    }
    auto tensor = read_tensor(fields, data);
    if (!tensor) return malformed("tensor '{}': {}", shown(name), tensor.error().message);
    if (Status good = check_alignment(*tensor, file.data()); !good)
      return malformed("tensor '{}': {}", shown(name), good.error().message);
    tensors.emplace(name, std::move(*tensor));
  }
  if (Status good = check_cover(tensors, data); !good) return tl::unexpected(good.error());
  return tensors;
}

Result<Tensors> read_tensors(std::span<const std::byte> file) {
  if (file.size() < kLengthBytes)
    return malformed("it has {} bytes, the header's length alone takes {}", file.size(), kLengthBytes);
  std::uint64_t header_bytes = 0;
  for (std::uint64_t i = kLengthBytes; i-- > 0;)
    header_bytes = header_bytes << 8 | std::to_integer<std::uint64_t>(file[i]);
  const std::uint64_t most = std::min(kMostHeaderBytes, file.size() - kLengthBytes);
  if (header_bytes > most)
    return malformed("its header is said to have {} bytes, the limit is {}{}", header_bytes, most,
                     most < kMostHeaderBytes ? ", where the file ends" : "");
  const auto header = file.subspan(kLengthBytes, header_bytes);
  const std::string_view text(reinterpret_cast<const char*>(header.data()), header.size());
  if (!text.starts_with('{'))
    return malformed("its header begins with '{}' and not with '{{'", shown(text.substr(0, 1)));
  const auto json = parse_header(text);
  if (!json) return malformed("its header: {}", json.error().message);
  return read_header(*json, file, file.subspan(kLengthBytes + header_bytes));
}

/// The whole file, to be read; empty if it is empty.
Result<std::span<std::byte>> map_file(int descriptor) {
  struct stat about {};
  if (::fstat(descriptor, &about) != 0) return fail(ErrorCode::unavailable, std::strerror(errno));
  if (!S_ISREG(about.st_mode)) return fail(ErrorCode::unavailable, "it is not a file");
  if (about.st_size == 0) return std::span<std::byte>{};
  const auto bytes = static_cast<std::size_t>(about.st_size);
  void* address = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, descriptor, 0);
  if (address == MAP_FAILED) return fail(ErrorCode::unavailable, std::strerror(errno));
  return std::span(static_cast<std::byte*>(address), bytes);
}

}  // namespace

Result<std::uint64_t> tensor_bytes(std::string_view dtype, std::span<const std::uint64_t> shape) {
  const Dtype* known = find_dtype(dtype);
  if (known == nullptr) {
    std::string names;
    for (const Dtype& each : kDtypes) names += fmt::format("{}{}", names.empty() ? "" : ", ", each.name);
    return fail(ErrorCode::invalid_argument, fmt::format("dtype is '{}'; known are {}", shown(dtype), names));
  }
  std::uint64_t bits = known->bits;
  const bool empty = std::ranges::find(shape, 0U) != shape.end();
  for (const std::uint64_t extent : shape)
    if (!empty && __builtin_mul_overflow(bits, extent, &bits))
      return fail(ErrorCode::invalid_argument, "its shape has more than 2^64 bits");
  if (empty) return 0;
  if (bits % 8 == 0) return bits / 8;
  return fail(ErrorCode::invalid_argument,
              fmt::format("its shape of {} has {} bits, which is not a whole number of bytes", dtype, bits));
}

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  const auto named = [&](const Error& error) { return fail(error.code, path + ": " + error.message); };
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0)
    return named({errno == ENOENT ? ErrorCode::not_found : ErrorCode::unavailable, std::strerror(errno)});
  const auto mapping = map_file(descriptor);
  ::close(descriptor);  // the mapping stays
  if (!mapping) return named(mapping.error());
  SafetensorsFile file;
  file.mapping_ = *mapping;
  auto tensors = read_tensors(file.mapping_);
  if (!tensors) return named(tensors.error());
  file.tensors_ = std::move(*tensors);
  return file;
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : mapping_(std::exchange(other.mapping_, {})), tensors_(std::move(other.tensors_)) {}

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(tensors_, other.tensors_);
  return *this;
}

SafetensorsFile::~SafetensorsFile() {
  if (!mapping_.empty()) ::munmap(mapping_.data(), mapping_.size());
}

const Tensor* SafetensorsFile::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

Status write_safetensors(const std::string& path, const Tensors& tensors) {
  std::vector<const Tensors::value_type*> order;
  for (const auto& tensor : tensors) {
    const auto bytes = tensor_bytes(tensor.second.dtype, tensor.second.shape);
    if (!bytes || *bytes != tensor.second.bytes.size())
      return fail(ErrorCode::invalid_argument,
                  fmt::format("tensor '{}': {}", shown(tensor.first),
                              bytes ? fmt::format("it has {} bytes, its shape of {} has {}",
                                                  tensor.second.bytes.size(), tensor.second.dtype, *bytes)
                                    : bytes.error().message));
    order.push_back(&tensor);
  }
  // The widest elements first: then each lies at a multiple of its size.
  std::ranges::stable_sort(order, std::greater{},
                           [](const auto* tensor) { return find_dtype(tensor->second.dtype)->bits; });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  std::uint64_t end = 0;
  for (const auto* tensor : order) {
    const std::uint64_t begin = std::exchange(end, end + tensor->second.bytes.size());
    header[tensor->first] = {
        {"dtype", tensor->second.dtype}, {"shape", tensor->second.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  std::ofstream file(path, std::ios::binary);
  for (std::uint64_t i = 0; i < kLengthBytes; ++i) file.put(static_cast<char>(text.size() >> 8 * i));
  file << text;
  for (const auto* tensor : order)
    file.write(reinterpret_cast<const char*>(tensor->second.bytes.data()),
               static_cast<std::streamsize>(tensor->second.bytes.size()));
  file.close();
  if (file) return {};
  return fail(ErrorCode::unavailable, fmt::format("{}: {}", path, std::strerror(errno)));
}

}  // namespace harvest::examples
