//! Prometheus' own text format, made from that of OpenMetrics.

/// The two differ in the names that metadata have, and in metadata that only OpenMetrics knows.
pub(super) fn prometheus(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    // HELP comes before TYPE, but its name depends on the type.
    let mut help = None;
    for line in open_metrics.lines() {
        match line.strip_prefix("# ").map(|metadata| metadata.splitn(3, ' ').collect::<Vec<_>>()).as_deref() {
            Some(["HELP", name, text]) => help = Some((*name, *text)),
            Some(["TYPE", name, kind]) => {
                let (suffix, kind) = match *kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    other => ("", other),
                };
                if let Some((_, text)) = help.take().filter(|(of, _)| of == name) {
                    out.extend(["# HELP ", name, suffix, " ", text, "\n"]);
                }
                out.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
            }
            // UNIT and EOF.
            Some(_) => {}
            None => out.extend([line, "\n"]),
        }
    }
    out
}
