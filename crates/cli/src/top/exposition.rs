//! The text that metrics are served as (OpenMetrics 1.0, section 5), as far as counters and histograms need it.

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    /// Its metric, with what a counter or histogram adds to it.
    pub(super) name: String,
    labels: Vec<(String, String)>,
    /// Name and labels as they are written: the same for the same series of one process.
    pub(super) series: String,
    /// The number.
    pub(super) value: f64,
}

impl Sample {
    /// A label; empty where there is none of that name.
    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

/// All samples of a page. Lines that are none are left out.
pub(super) fn samples(page: &str) -> Vec<Sample> {
    page.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn sample(text: &str) -> Option<Sample> {
    let name_end = text.find(['{', ' '])?;
    let (name, rest) = text.split_at(name_end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => labels(inside)?,
        None => (Vec::new(), rest),
    };
    let series = text.get(..text.len() - rest.len())?.to_owned();
    // A timestamp or an exemplar may follow.
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, series, value })
}

/// `name="value",...}` and what is behind it.
fn labels(text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let (mut labels, mut rest) = (Vec::new(), text);
    loop {
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((labels, behind));
        }
        let (name, behind) = rest.split_once("=\"")?;
        let (mut value, mut end, mut escaped) = (String::new(), None, false);
        for (place, one) in behind.char_indices() {
            match (escaped, one) {
                (true, 'n') => value.push('\n'),
                (true, one) => value.push(one),
                (false, '"') => {
                    end = Some(place + 1);
                    break;
                }
                (false, '\\') => {}
                (false, one) => value.push(one),
            }
            escaped = !escaped && one == '\\';
        }
        labels.push((name.trim_start_matches(',').to_owned(), value));
        rest = behind.get(end?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_labels_and_numbers_are_read() {
        let page = "# HELP x y\nplain 3\nx_total{a=\"1\",b=\"q\\\"u\\\\o,te}\\n\"} 4.5 1700000000\nx_bucket{le=\"+Inf\"} 7\n# EOF\nbroken{a=\"1\n";
        let all = samples(page);
        assert_eq!(all.len(), 3);
        assert_eq!((all[0].name.as_str(), all[0].value), ("plain", 3.0));
        assert_eq!((all[1].label("a"), all[1].label("b"), all[1].label("c")), ("1", "q\"u\\o,te}\n", ""));
        assert_eq!(all[1].value, 4.5);
        assert_eq!(all[2].series, "x_bucket{le=\"+Inf\"}");
    }
}
