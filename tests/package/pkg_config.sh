#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# pkg_config.sh COMPILER SOURCE PREFIX PROGRAM [--static]: builds and runs SOURCE as pkg-config says.
set -euo pipefail
compiler=$1 source=$2 prefix=$3 program=$4
shift 4

PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name harvest.pc)")
export PKG_CONFIG_PATH
libdir=$(pkg-config --variable=libdir harvest)
# Of the flags each is a word, so they are not quoted.
# shellcheck disable=SC2046
"$compiler" -std=c++20 "$source" -o "$program" $(pkg-config "$@" --cflags --libs harvest) "-Wl,-rpath,$libdir"
"$program"
