#!/usr/bin/env bash
# make bench-plot: draws build/bench.csv, which make bench writes, as build/bench.png. Needs gnuplot.
cd "$(dirname "$0")/../.." || exit 1
if ! command -v gnuplot >/dev/null 2>&1; then
    echo "make bench-plot needs gnuplot. On Debian or Ubuntu: sudo apt-get install gnuplot-nox" >&2
    exit 1
fi
if [ ! -s build/bench.csv ] || [ ! -s build/bench.txt ]; then
    echo "There are no figures to draw yet: make bench" >&2
    exit 1
fi
machine=$(sed -n 's/^machine: *\([^;]*\);.*/\1/p' build/bench.txt)
gnuplot -e "machine='${machine//\'/}'" tests/bench/plot.gp && echo "build/bench.png"
