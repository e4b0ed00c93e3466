#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/plot.py on what the program really prints: plot_test.py PROGRAM PLOT_SCRIPT."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

PROGRAM, SCRIPT = sys.argv[1:3]
PNG = b"\x89PNG\r\n\x1a\n"


class Plot(unittest.TestCase):
    def setUp(self):
        self.folder_ = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder_.cleanup)
        self.folder = pathlib.Path(self.folder_.name)

    def measure(self, benchmark, *more, system="2xh100-nvl"):
        path = self.folder / f"{benchmark}.json"
        command = [PROGRAM, "bench", benchmark, "--system", system, "--quick", "--runs", "1", "--json", *more]
        path.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return path

    def plot(self, *arguments):
        command = [sys.executable, SCRIPT, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def assert_drawn(self, path):
        self.assertEqual(path.read_bytes()[:8], PNG)
        self.assertGreater(path.stat().st_size, 10_000)

    def test_draws_both_benchmarks_beside_their_files(self):
        ran = self.plot(self.measure("link"), self.measure("reclaim"))
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assert_drawn(self.folder / "link.png")
        self.assert_drawn(self.folder / "reclaim.png")

    def test_draws_more_lines_than_a_legend_names(self):
        path = self.measure("link", "--sizes", "4KiB,64KiB", system="dgx-h100")
        other = self.folder / "out"
        other.mkdir()
        ran = self.plot(path, "--out", other)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertEqual(ran.stdout.strip(), str(other / "link.png"))
        self.assert_drawn(other / "link.png")

    def test_draws_servers_of_kv_blocks(self):
        for kind, more in (("serve", ["--requests", "20"]), ("turns", ["--sequences", "20"])):
            path = self.folder / f"{kind}.json"
            command = [PROGRAM, "bench", "kv", kind, *more, "--json"]
            path.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            ran = self.plot(path)
            self.assertEqual(ran.returncode, 0, ran.stderr)
            self.assert_drawn(self.folder / f"{kind}.png")

    def test_draws_harvest_against_harm(self):
        path = self.folder / "owner.json"
        command = [PROGRAM, "bench", "owner", "--quick", "--json"]
        path.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        ran = self.plot(path)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assert_drawn(self.folder / "owner.png")

    def test_draws_hit_ratios_against_capacity(self):
        trace = self.folder / "trace.jsonl"
        request = {"timestamp": 0, "input_length": 1024, "output_length": 1}
        trace.write_text("\n".join(json.dumps({**request, "hash_ids": [0, 1 + i % 3]}) for i in range(9)))
        path = self.folder / "policy.json"
        command = [PROGRAM, "policy", "--trace", str(trace), "--capacity-blocks", "1..4+1", "--json"]
        path.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        ran = self.plot(path)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assert_drawn(self.folder / "policy.png")

    def test_draws_strategies_with_a_panel_for_each_batch(self):
        path = self.folder / "moe.json"
        options = ["--model", "phi-3.5-moe", "--batch", "1,8,32", "--local-fraction", "0.25,0.5,1"]
        command = [PROGRAM, "bench", "moe", *options, "--warm-up", "2", "--steps", "2", "--json"]
        path.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        ran = self.plot(path, "--svg")
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertEqual(ran.stdout.strip(), str(self.folder / "moe.svg"))
        picture = (self.folder / "moe.svg").read_text()
        for batch in (1, 8, 32):
            self.assertIn(f"phi-3.5-moe, decode, batch {batch}<", picture)
        for line in ("all_local", "host", "static_peer", "expert_parallel", "harvest", "bound of harvest"):
            self.assertIn(line, picture)
        self.assertIn("SIMULATED", picture)
        self.plot(path, "--svg")
        self.assertEqual((self.folder / "moe.svg").read_text(), picture)

    def test_the_title_says_what_the_figures_are(self):
        import runpy

        title_of = runpy.run_path(SCRIPT)["title_of"]
        result = json.loads(self.measure("link").read_text())
        self.assertIn("SIMULATED", title_of(result, "x"))
        self.assertIn("2xh100-nvl", title_of(result, "x"))
        self.assertNotIn("LOOPBACK", title_of(result, "x"))
        self.assertNotIn("SIMULATED", title_of({**result, "simulated": False}, "x"))
        self.assertIn("LOOPBACK", title_of({**result, "loopback": True}, "x"))

    def refuse(self, name, text, expected):
        path = self.folder / name
        if text is not None:
            path.write_text(text)
        ran = self.plot(path)
        self.assertEqual(ran.returncode, 2, ran.stdout)
        self.assertEqual(ran.stderr.count("\n"), 1, ran.stderr)
        self.assertIn(str(path), ran.stderr)
        self.assertIn(expected, ran.stderr)

    def test_says_what_is_wrong_with_a_file(self):
        self.refuse("none.json", None, "No such file")
        self.refuse("words.json", "hello", "not JSON")
        self.refuse("list.json", "[1]", "bench link, bench moe, bench owner, bench reclaim or policy")
        self.refuse("other.json", '{"benchmark": "lookup", "rows": [{}]}', "bench link, bench moe, bench owner")
        self.refuse("empty.json", '{"benchmark": "link", "rows": []}', "no rows")
        no_capacity = '{"benchmark": "policy", "trace": "t", "results": [{"policy": "x"}]}'
        self.refuse("policy.json", no_capacity, "'capacity_blocks'")
        self.refuse("no_cases.json", '{"benchmark": "moe", "cases": []}', "no cases")
        self.refuse("moe.json", '{"benchmark": "moe", "cases": [{"batch": 1}]}', "'local_fraction'")
        self.refuse("owner.json", '{"benchmark": "owner", "rows": [{"mode": "x"}]}', "'rise'")
        self.refuse("short.json", '{"benchmark": "link", "rows": [{"from": 0}]}', "'to'")
        ran = self.plot(self.measure("link"), "--out", self.folder / "nowhere")
        self.assertEqual(ran.returncode, 2)
        self.assertIn("nowhere is not a folder", ran.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
