# Counts the lines that end in a limit, and repeats those that missed it.
/   limit=[0-9.]+( missed)?$/ {
    total++
    if (/ missed$/)
        missed[++misses] = $0
}
END {
    printf "\nlimits: %d, met: %d\n", total, total - misses
    for (i = 1; i <= misses; i++)
        print "  " missed[i]
}
