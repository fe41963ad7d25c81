//! One measured figure, its baseline and its budget.

use serde_json::json;

/// Which side of the limit is good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Budget {
    /// The value may be this or less.
    AtMost(f64),
    /// The value must be this or more.
    AtLeast(f64),
    /// The ratio to the baseline must be this or more.
    RatioAtLeast(f64),
    /// No budget; the figure explains another one.
    None,
}

/// A figure of a benchmark.
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) name: String,
    /// The measured value.
    pub(crate) value: f64,
    /// Its unit, the baseline's too.
    pub(crate) unit: &'static str,
    /// What it is compared with.
    pub(crate) baseline: String,
    /// The baseline's value in the same run.
    pub(crate) baseline_value: f64,
    /// What the design allows.
    pub(crate) budget: Budget,
}

impl Figure {
    fn ratio(&self) -> f64 {
        if self.baseline_value == 0.0 { f64::NAN } else { self.value / self.baseline_value }
    }

    fn passes(&self) -> Option<bool> {
        match self.budget {
            Budget::AtMost(limit) => Some(self.value <= limit),
            Budget::AtLeast(limit) => Some(self.value >= limit),
            Budget::RatioAtLeast(limit) => Some(self.ratio() >= limit),
            Budget::None => None,
        }
    }

    fn budget_text(&self) -> String {
        match self.budget {
            Budget::AtMost(limit) => format!("<= {limit}"),
            Budget::AtLeast(limit) => format!(">= {limit}"),
            Budget::RatioAtLeast(limit) => format!("ratio >= {limit}"),
            Budget::None => "-".to_owned(),
        }
    }

    /// Prints one line for people, or one JSON object a line.
    pub(crate) fn print(&self, is_json: bool) {
        if is_json {
            let line = json!({
                "name": self.name, "value": self.value, "unit": self.unit,
                "baseline": { "what": self.baseline, "value": self.baseline_value },
                "ratio": Some(self.ratio()).filter(|r| r.is_finite()), "budget": self.budget_text(), "pass": self.passes(),
            });
            println!("{line}");
            return;
        }
        let verdict = match self.passes() {
            Some(true) => "pass",
            Some(false) => "OVER",
            None => "-",
        };
        println!(
            "{:44} {:>10.1} {:5} {:>8.2} x {:10.1} ({})  budget {}  {verdict}",
            self.name,
            self.value,
            self.unit,
            self.ratio(),
            self.baseline_value,
            self.baseline,
            self.budget_text(),
        );
    }
}

/// The value below which this share of the samples lies; samples are sorted here.
pub(crate) fn percentile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let index = ((samples.len().saturating_sub(1)) as f64 * share).round() as usize;
    samples.get(index).copied().unwrap_or(f64::NAN)
}
