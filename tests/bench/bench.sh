#!/usr/bin/env bash
# make bench: runs both programs (about a minute), keeps what they print in build/bench.txt and the selections in
# build/bench.csv, and counts the limits that are met.
cd "$(dirname "$0")/../.." || exit 1
set -e -o pipefail
{
    build/bench build/bench.csv
    build/bench_single build/bench.csv
} | tee build/bench.txt
awk -f tests/bench/summary.awk build/bench.txt
