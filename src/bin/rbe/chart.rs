//! Pictures: horizontal bars as SVG, which every browser shows.

use std::fmt::Write;

/// One bar.
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    /// Said in small letters behind the value.
    pub(crate) note: String,
}

const ROW: usize = 22;
const NAMES: usize = 300;
const LONGEST: f64 = 420.0;
const WIDTH: usize = 1020;
const TOP: usize = 52;

/// Bars below a title, the longest first to reach the full width.
pub(crate) fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let height = TOP + ROW * bars.len() + 16;
    let longest = bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"30\" font-size=\"16\" font-weight=\"600\" fill=\"#1f2933\">{}</text>\n",
        escape(title)
    );
    for (n, bar) in bars.iter().enumerate() {
        let middle = TOP + ROW * n + ROW / 2;
        let length = LONGEST * (bar.value / longest).clamp(0.0, 1.0);
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#3e4c59\">{}</text>\
             <rect x=\"{NAMES}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\" rx=\"2\" fill=\"#2f7fbf\"/>\
             <text x=\"{:.1}\" y=\"{}\" fill=\"#1f2933\">{:.2} {unit} \
             <tspan fill=\"#7b8794\" font-size=\"11\">{}</tspan></text>",
            NAMES - 8,
            middle + 4,
            escape(&bar.name),
            middle - 7,
            14,
            NAMES as f64 + length + 8.0,
            middle + 4,
            bar.value,
            escape(&bar.note),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_is_as_long_as_it_may_be() {
        let bar = |value| Bar { name: "a<b".into(), value, note: String::new() };
        let svg = bars("t & u", "ms", &[bar(1.0), bar(4.0), bar(0.0)]);
        for part in ["width=\"105.0\"", "width=\"420.0\"", "width=\"0.0\"", "a&lt;b", "t &amp; u"] {
            assert!(svg.contains(part), "{part}");
        }
        assert_eq!(svg.matches("<rect").count(), 4);
    }
}
