# Nanoseconds a selection against the number of backends, from build/bench.csv. Called by plot.sh, which sets `machine`.
csv = "build/bench.csv"
rows(strategy, how, down) = sprintf("< awk -F, '$1 == \"%s\" && $2 == \"%s\" && $4 == %d && $5 == 256' %s", \
                                    strategy, how, down, csv)
is_there(strategy) = int(system(sprintf("grep -c '^%s,' %s || true", strategy, csv))) > 0

# Those that pingora has too, then the others.
faithful = "rr random fnv ketama"
faithful_titles = "'round robin' random FNV Ketama"
faithful_colors = "#0072b2 #e69f00 #009e73 #b5338a"
further = "wrr least_conn p2c ewma maglev bounded rendezvous ip_hash"
further_titles = "'smooth round robin' 'least connections' 'two choices' 'peak EWMA' \
                  Maglev 'bounded loads' rendezvous 'IP hash'"
further_colors = "#0072b2 #56b4e9 #e69f00 #d55e00 #009e73 #b5338a #777777 #5b4ccc"

ways = "'any thread' 'by handle' 'pingora, recorded'"

tall = is_there(word(further, 1))
height = tall ? 1395 : 750
from_top(pixels) = 1 - pixels / (1.0 * height)

set datafile separator ","
set terminal pngcairo size 1500, height background "#ffffff" font "DejaVu Sans,13" linewidth 1.4
set output "build/bench.png"

set border 3 linecolor rgb "#888888"
set tics nomirror textcolor rgb "#333333"
set logscale xy
set xrange [1.7:13000]
set xtics ("2" 2, "10" 10, "100" 100, "1000" 1000, "10 000" 10000)
set yrange [2:5000]
set ytics (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
set grid xtics ytics back linetype 1 linecolor rgb "#e4e4e4"
set xlabel "backends" textcolor rgb "#333333"
set key horizontal center samplen 3 width 1 textcolor rgb "#333333"

set style line 1 linewidth 2.2 pointtype 7 pointsize 0.9 linecolor rgb "#333333"
set style line 2 linewidth 1.8 pointtype 0 pointsize 0 dashtype (6, 4) linecolor rgb "#333333"
set style line 3 linewidth 1 pointtype 6 pointsize 1.1 linecolor rgb "#333333"

# A row of two panels stands `top` pixels below the upper edge, its keys under it: of the further strategies half under each.
left(panel) = panel == 1 ? 0.062 : 0.545
place = 'set lmargin at screen left(panel); set rmargin at screen left(panel) + 0.435; \
         set tmargin at screen from_top(top); set bmargin at screen from_top(top + 470); \
         set key at screen left(panel) + 0.2175, screen from_top(top + 556); \
         if (panel == 1) { set ylabel "nanoseconds a selection" offset 0.7 textcolor rgb "#333333" } else { unset ylabel }'
key(panel, i, count, titles) = (i <= count / 2) == (panel == 1) ? word(titles, i) : ""

set multiplot
set label 1 "What one selection costs" at screen 0.062, screen from_top(36) font "DejaVu Sans Bold,19"
set label 2 "pingora\\_lb: measured on ".machine.", one thread, 24-byte keys, max\\_iterations 256." \
    at screen 0.062, screen from_top(70) textcolor rgb "#555555"
set label 3 "Hollow points: pingora-load-balancing 0.8, recorded once and not measured in this run." \
    at screen 0.062, screen from_top(94) textcolor rgb "#555555"

top = 160
do for [panel = 1:2] {
    down = panel == 1 ? 0 : 90
    eval place
    set title (panel == 1 ? "All backends up" : "90 % of the backends down (one of two)") font "DejaVu Sans Bold,14" \
        textcolor rgb "#222222"
    plot for [i = 1:words(faithful)] rows(word(faithful, i), "plain", down) using 3:8 with linespoints linestyle 3 \
             linecolor rgb word(faithful_colors, i) notitle, \
         for [i = 1:words(faithful)] rows(word(faithful, i), "handle", down) using 3:6 with lines linestyle 2 \
             linecolor rgb word(faithful_colors, i) notitle, \
         for [i = 1:words(faithful)] rows(word(faithful, i), "plain", down) using 3:6 with linespoints linestyle 1 \
             linecolor rgb word(faithful_colors, i) title (panel == 1 ? word(faithful_titles, i) : ""), \
         for [i = 1:3] keyentry with linespoints linestyle i title (panel == 2 ? word(ways, i) : "")
    unset label 1
    unset label 2
    unset label 3
}

if (tall) {
    top = 805
    do for [panel = 1:2] {
        down = panel == 1 ? 0 : 90
        eval place
        set title (panel == 1 ? "Further strategies, weights 1 to 10: all up" : "The same: 90 % down (one of two)")
        plot for [i = 1:words(further)] rows(word(further, i), "handle", down) using 3:6 with lines linestyle 2 \
                 linecolor rgb word(further_colors, i) notitle, \
             for [i = 1:words(further)] rows(word(further, i), "plain", down) using 3:6 with linespoints linestyle 1 \
                 linecolor rgb word(further_colors, i) title key(panel, i, words(further), further_titles)
    }
}
unset multiplot
