//! The one table: a row per question, Carob beside its peers, and what the design asks for.

use std::fmt::Write as _;

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Fewer are better.
    Milliseconds,
    /// More are better.
    PerSecond,
    /// Fewer are better.
    Bytes,
    /// Of one core; fewer are better.
    Percent,
    /// A ratio; smaller is better.
    Times,
}

/// One cell of a peer or of Carob.
#[derive(Clone, Debug)]
pub enum Cell {
    /// Measured.
    Number(f64),
    /// There is nothing to measure: said in a word.
    Nothing(&'static str),
    /// Not measured.
    Missing,
}

impl From<Option<f64>> for Cell {
    fn from(number: Option<f64>) -> Self {
        number.map_or(Self::Missing, Self::Number)
    }
}

/// One question.
pub struct Row {
    pub what: String,
    pub unit: Unit,
    /// Carob's first, then the peers', in the order of the columns.
    pub cells: Vec<Cell>,
    /// What the design promises.
    pub budget: Option<f64>,
    /// What it wants to reach after that.
    pub aim: Option<f64>,
}

impl Row {
    /// Whether Carob was measured and keeps the budget; nothing where there is none.
    pub fn budget_met(&self) -> Option<bool> {
        match (self.budget, self.cells.first()) {
            (Some(budget), Some(Cell::Number(number))) => Some(self.reaches(*number, budget)),
            _ => None,
        }
    }

    fn reaches(&self, number: f64, mark: f64) -> bool {
        if self.unit == Unit::PerSecond { number >= mark } else { number <= mark }
    }

    fn marks(&self) -> String {
        let verdict = |mark: f64| {
            let text = self.unit.show(mark);
            match self.cells.first() {
                Some(Cell::Number(number)) if self.reaches(*number, mark) => format!("{text}: met"),
                Some(Cell::Number(_)) => format!("{text}: **not met**"),
                _ => text,
            }
        };
        [self.budget, self.aim].into_iter().flatten().map(verdict).collect::<Vec<_>>().join("; ")
    }

    fn cell(&self, index: usize) -> String {
        let number = match self.cells.get(index) {
            Some(Cell::Number(number)) => *number,
            Some(Cell::Nothing(word)) => return (*word).to_owned(),
            _ => return "–".to_owned(),
        };
        let text = self.unit.show(number);
        match self.cells.first() {
            Some(Cell::Number(carob)) if index > 0 && *carob > 0.0 && number > 0.0 => {
                let ratio = if self.unit == Unit::PerSecond { carob / number } else { number / carob };
                let digits = usize::from(ratio < 9.95) + usize::from(ratio < 0.995);
                format!("{text} (×{ratio:.digits$})")
            }
            _ => text,
        }
    }
}

impl Unit {
    /// With the unit, in about three digits.
    pub fn show(self, number: f64) -> String {
        let digits = |number: f64| usize::from(number < 99.95) + usize::from(number < 0.995 && number > 0.0);
        match self {
            Self::Milliseconds => format!("{number:.*} ms", digits(number)),
            Self::PerSecond => format!("{number:.*}/s", digits(number)),
            Self::Percent => format!("{number:.2} %"),
            Self::Times => format!("{number:.2}"),
            Self::Bytes if number < 0.995 * f64::from(1 << 20) => format!("{:.0} KiB", number / 1024.0),
            Self::Bytes => format!("{:.1} MiB", number / f64::from(1 << 20)),
        }
    }
}

/// The rows as Markdown that is readable as it is.
pub fn rows(columns: &[&str], rows: &[Row]) -> String {
    let mut header = vec![String::new()];
    header.extend(columns.iter().map(|column| (*column).to_owned()));
    header.push("budget; aim".to_owned());
    let body = rows.iter().map(|row| {
        let mut line = vec![row.what.clone()];
        line.extend((0..columns.len()).map(|index| row.cell(index)));
        line.push(row.marks());
        line
    });
    markdown(&header, &body.collect::<Vec<_>>())
}

/// Any table as Markdown with aligned columns.
pub fn markdown(header: &[String], body: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = body.iter().map(|line| line[column].chars().count());
        cells.chain([header[column].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &[String]| {
        for (cell, width) in cells.iter().zip(&widths) {
            // Writing to a string can't fail.
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
    };
    line(header);
    line(&widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>());
    for cells in body {
        line(cells);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(unit: Unit, cells: &[f64]) -> Row {
        let cells = cells.iter().map(|number| Cell::Number(*number)).collect();
        Row { what: "start".into(), unit, cells, budget: Some(25.0), aim: Some(10.0) }
    }

    #[test]
    fn a_ratio_says_how_many_times_better_carob_is() {
        assert_eq!(row(Unit::Milliseconds, &[20.0, 50.0]).cell(1), "50.0 ms (×2.5)");
        assert_eq!(row(Unit::PerSecond, &[20.0, 50.0]).cell(1), "50.0/s (×0.40)");
        assert_eq!(row(Unit::Bytes, &[0.0, 2048.0]).cell(1), "2 KiB");
    }

    #[test]
    fn marks_are_met_from_the_right_side() {
        assert_eq!(row(Unit::Milliseconds, &[20.0]).marks(), "25.0 ms: met; 10.0 ms: **not met**");
        assert_eq!(row(Unit::PerSecond, &[20.0]).budget_met(), Some(false));
        assert_eq!(row(Unit::PerSecond, &[30.0]).budget_met(), Some(true));
    }
}
