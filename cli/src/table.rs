//! Tables on a terminal: columns, no borders, nothing wrapped.

use comfy_table::{CellAlignment, Table, presets};

/// A table under its headers. Cells must have been made safe; the columns named by `right` hold numbers.
pub fn table(headers: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headers.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        // The first column begins at the margin; two spaces stand between two columns.
        column.set_padding((if index == 0 { 0 } else { 2 }, 0));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// Lines with a margin.
pub fn indented(text: &str, margin: usize) -> String {
    let margin = " ".repeat(margin);
    text.lines().map(|line| format!("{margin}{line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_their_headers() {
        let rows = [vec!["a".to_owned(), "10".to_owned()], vec!["long".to_owned(), "7".to_owned()]];
        assert_eq!(table(&["model", "cells"], &[1], rows), "model  cells\na         10\nlong       7");
    }
}
