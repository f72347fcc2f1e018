#!/usr/bin/env bash
# The headers compile without a warning wherever they are dropped in, and the README's samples are real.
cd "$(dirname "$0")/.." || exit 1
. tests/shell.sh

warnings="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"
c_only="-Wstrict-prototypes -Wmissing-prototypes"

emit() { # file, defines and headers: everything included twice, the implementation emitted once
    {
        echo '#define PINGORA_LB_IMPLEMENTATION'
        echo '#define PLB_PROXY_IMPLEMENTATION'
        echo '#define PLB_POSIX_IMPLEMENTATION'
        echo '#define PLB_MBEDTLS_IMPLEMENTATION'
        for header in "${@:2}"; do printf '#include "%s"\n#include "%s"\n' "$header" "$header"; done
    } >"$1"
}

emit "$scratch/core.c" pingora_lb.h
emit "$scratch/all.c" ports/plb_posix.h pingora_lb.h ports/plb_proxy.h
emit "$scratch/tls.c" ports/plb_posix.h ports/plb_mbedtls.h
for header in pingora_lb.h ports/plb_proxy.h ports/plb_posix.h ports/plb_mbedtls.h; do
    printf '#include "%s"\n' "$header"
done >"$scratch/declarations.c"
files="core all declarations"
gcc -E -include mbedtls/ssl.h -x c /dev/null >/dev/null 2>&1 && files="$files tls"
for f in $files; do cp "$scratch/$f.c" "$scratch/$f.cc"; done

for define in "" -DPLB_NO_THREADS -DPLB_STATIC "-DPLB_NO_THREADS -DPLB_STATIC" -DPLB_POSIX_POLL; do
    for file in $files; do
        # A static function is declared where it is defined: not without the implementation.
        case $file$define in declarations*PLB_STATIC*) continue ;; esac
        for compiler in "gcc -std=c99 $c_only" "gcc -std=c11 $c_only" "clang -std=c99 $c_only" "clang -std=c11 $c_only" \
            "g++ -std=c++11" "clang++ -std=c++11"; do
            # The other generation of C has nothing to say of a define.
            case $define$compiler in -*"gcc -std=c11"* | -*"clang -std=c99"*) continue ;; esac
            case $compiler in *++*) source=$scratch/$file.cc ;; *) source=$scratch/$file.c ;; esac
            # shellcheck disable=SC2086 # lists of flags
            rule "$file.h: $compiler $define" $compiler $warnings $define -I. -c "$source" -o "$scratch/out.o"
        done
    done
done
rule "optimized builds see no more: gcc -O2" gcc -std=c99 -O2 $warnings -I. -c "$scratch/all.c" -o "$scratch/out.o"
rule "optimized builds see no more: gcc -Os -m32-like types" \
    gcc -std=c99 -Os $warnings -DPLB_NO_THREADS -I. -c "$scratch/core.c" -o "$scratch/out.o"

os_headers='#[[:space:]]*include[[:space:]]*<(sys/|netinet|arpa|unistd|fcntl|pthread|time\.h|errno|poll|winsock|windows|stdio|signal)'
rule "no operating system in pingora_lb.h and plb_proxy.h" \
    bash -c "! grep -nE '$os_headers' pingora_lb.h ports/plb_proxy.h"
rule "pingora_lb.h asks nothing of libc but memory and <string.h>" bash -c "
    gcc -std=c99 -O2 -I. -c '$scratch/core.c' -o '$scratch/core.o' &&
    ! nm -u '$scratch/core.o' | grep -vE ' (malloc|free|mem(cpy|set|cmp|chr|move)|str(len|cmp|chr|rchr)|_GLOBAL_OFFSET_TABLE_|__[a-z0-9_]+)$'"

# Every sample of the README that is marked as C compiles; complete programs run.
awk -v out="$scratch/sample" '/^```c$/ {n++; on=1; next} /^```$/ {on=0} on {print > (out n ".c")}' README.md
samples=0
for sample in "$scratch"/sample*.c; do
    [ -f "$sample" ] || continue
    samples=$((samples + 1))
    rule "README sample $samples compiles" \
        gcc -std=c99 $warnings -I. -Iports "$sample" -o "$sample.out" -pthread
    rule "README sample $samples runs" timeout 10 "$sample.out"
done
rule "the README has samples" test "$samples" -gt 0
rule "the README names every file" bash -c '
    for f in pingora_lb.h ports/*.h examples/*.c; do grep -qF "$f" README.md || { echo "$f is not named"; exit 1; }; done'

# The table of contents in the manual names every section, in order.
rule "the table of contents of pingora_lb.h is true" bash -c "
    contents=\$(sed -n '/^   CONTENTS/,/^   WORDS/p' pingora_lb.h | sed '1d;\$d' | grep -v 'Sections begin\|Implementation:' |
        sed -E 's/^     ([A-Z][A-Z0-9 \/-]*[A-Z0-9])  .*/\1/' | tr ',' '\n' | sed -E 's/^ +//; s/ +\$//' | grep .)
    banners=\$(grep -E '^/\* ==== ' pingora_lb.h | sed -E 's/^\/\* ==== //; s/ =+.*//' | grep -v '^IMPLEMENTATION')
    diff <(echo \"\$contents\") <(echo \"\$banners\")"
report
