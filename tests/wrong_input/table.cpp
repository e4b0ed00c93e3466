// SPDX-License-Identifier: Apache-2.0
#include "wrong_input/table.hpp"

#include <fmt/format.h>

#include <fstream>
#include <iterator>
#include <stdexcept>

namespace harvest::testing {
namespace {

std::string_view trim(std::string_view text) {
  const auto begin = text.find_first_not_of(' ');
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(' ') - begin + 1);
}

/// The cells of "| a | b |"; empty for a line that is none of a table.
std::vector<std::string> cells_of(std::string_view line) {
  std::vector<std::string> cells;
  if (!line.starts_with('|')) return cells;
  line.remove_prefix(1);
  for (auto bar = line.find('|'); bar != std::string_view::npos; bar = line.find('|')) {
    cells.emplace_back(trim(line.substr(0, bar)));
    line.remove_prefix(bar + 1);
  }
  return cells;
}

/// An answer in backticks is an error, and has a message; beside one that is none stands prose.
Row row_of(const std::vector<std::string>& cells) {
  const auto error = in_backticks(cells[1]);
  if (error.empty()) return {cells[0], cells[1], {}};
  return {cells[0], error.front(), in_backticks(cells[2])};
}

}  // namespace

std::vector<std::string> in_backticks(std::string_view text) {
  std::vector<std::string> found;
  while (true) {
    const auto begin = text.find('`');
    const auto end = begin == std::string_view::npos ? begin : text.find('`', begin + 1);
    if (end == std::string_view::npos) return found;
    found.emplace_back(text.substr(begin + 1, end - begin - 1));
    text.remove_prefix(end + 1);
  }
}

std::vector<Row> read_table(std::string_view page, const std::string& heading) {
  const std::string title = "\n### " + heading + "\n";
  const auto at = page.find(title);
  if (at == std::string_view::npos)
    throw std::runtime_error(fmt::format("docs/reliability.md has no heading '### {}'", heading));
  page.remove_prefix(at + title.size());
  page = page.substr(0, page.find("\n#"));

  std::vector<Row> rows;
  for (int line_of_table = 0; !page.empty();) {
    const auto end = std::min(page.find('\n'), page.size());
    const auto cells = cells_of(page.substr(0, end));
    page.remove_prefix(std::min(end + 1, page.size()));
    if (cells.empty()) continue;
    if (cells.size() != 3) throw std::runtime_error(fmt::format("a row of '{}' has not 3 cells", heading));
    if (++line_of_table <= 2) continue;  // the names of the columns, and the line under them
    rows.push_back(row_of(cells));
  }
  if (rows.empty()) throw std::runtime_error(fmt::format("'{}' has no table", heading));
  return rows;
}

const std::string& reliability_page() {
  static const std::string page = [] {
    std::ifstream in(HARVEST_SOURCE_DIR "/docs/reliability.md", std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  }();
  return page;
}

std::string difference(const Row& row, const Outcome& given) {
  std::string text;
  if (given.answer != row.answer) text += fmt::format("it gave {}, not {}\n", given.answer, row.answer);
  for (const std::string& word : row.words)
    if (given.message.find(word) == std::string::npos) text += fmt::format("it does not say '{}'\n", word);
  if (!given.message.empty() && row.words.empty()) text += "the row does not say what the message says\n";
  if (!text.empty()) text += fmt::format("its message: {}\n", given.message);
  return text;
}

Table::Table(std::string_view page, const std::string& heading)
    : heading_(heading), rows_(read_table(page, heading)), shown_(rows_.size()) {}

Table::~Table() {
  for (std::size_t i = 0; i < rows_.size(); ++i)
    if (!shown_[i]) ADD_FAILURE() << heading_ << ": no test shows the row '" << rows_[i].input << "'";
}

const Row* Table::take(const std::string& input) {
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    if (rows_[i].input != input) continue;
    if (shown_[i]) ADD_FAILURE() << heading_ << ": the row '" << input << "' is shown twice";
    shown_[i] = true;
    return &rows_[i];
  }
  ADD_FAILURE() << heading_ << ": docs/reliability.md has no row '" << input << "'";
  return nullptr;
}

void Table::waives(const std::string& input) {
  static_cast<void>(take(input));
}

void Table::shows(const std::string& input, const Outcome& given) {
  const Row* row = take(input);
  if (row == nullptr) {
    ADD_FAILURE() << "it gave " << given.answer << ": " << given.message;
    return;
  }
  EXPECT_EQ(difference(*row, given), "") << heading_ << ": " << input;
}

::testing::Matcher<const std::string&> Table::has_all(const std::vector<std::string>& words) {
  std::vector<::testing::Matcher<const std::string&>> all;
  for (const std::string& word : words) all.emplace_back(::testing::HasSubstr(word));
  return ::testing::AllOfArray(all);
}

}  // namespace harvest::testing
