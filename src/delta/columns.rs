//! Rows of equal length, cut into runs of columns: each run is stored in the form that suits it, in the section of that form.
//! Which form is the encoder's choice; the decoder reads it. Spec: formats/deltas.md.

use super::varint::{self, Cursor};
use crate::format::FormatError;
use crate::format::delta::ColumnForm;

/// Fewer rows than this have no layout: they are stored as they are.
pub const LAYOUT_ROWS_MIN: usize = 4;
/// Columns between two runs of rows that join them, when they are not more than this.
const JOIN_MAX: usize = 2;
/// Fewer digits than this in a run are an ordinary column.
const DIGITS_MIN: usize = 6;
/// A column whose entropy is more than this part of the most possible stays in its row.
const ROW_FROM: f32 = 0.88;
/// Rows that a form is chosen by; fits the counters, which are bytes.
const SAMPLE_ROWS: usize = 192;

/// Where columns go.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    /// Forms and lengths of runs.
    pub layouts: Vec<u8>,
    /// One value a column.
    pub constants: Vec<u8>,
    /// Columns.
    pub columns: Vec<u8>,
    /// Columns of differences.
    pub differences: Vec<u8>,
    /// Rows.
    pub rows: Vec<u8>,
    /// Digits, two a byte.
    pub digits: Vec<u8>,
}

impl Columns {
    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        for section in [
            &mut self.layouts,
            &mut self.constants,
            &mut self.columns,
            &mut self.differences,
            &mut self.rows,
            &mut self.digits,
        ] {
            section.clear();
        }
    }
}

/// Chooses forms and stores rows by them.
#[derive(Debug)]
pub struct ColumnWriter {
    logs: Vec<f32>,
    forms: Vec<ColumnForm>,
    /// The rows, column by column.
    turned: Vec<u8>,
}

impl Default for ColumnWriter {
    fn default() -> Self {
        let logs = (0..=SAMPLE_ROWS).map(|n| if n < 2 { 0.0 } else { (n as f32).log2() }).collect();
        ColumnWriter { logs, forms: Vec::new(), turned: Vec::new() }
    }
}

impl ColumnWriter {
    /// Appends `rows`, each of `width` bytes, one after the other.
    pub fn put(&mut self, rows: &[u8], width: usize, to: &mut Columns) {
        if width == 0 || rows.is_empty() {
            return;
        }
        assert!(rows.len().is_multiple_of(width), "{} bytes in rows of {width}", rows.len());
        let count = rows.len() / width;
        if count < LAYOUT_ROWS_MIN {
            to.rows.extend_from_slice(rows);
            return;
        }
        turn(rows, width, &mut self.turned);
        self.choose(count);
        let mut at = 0;
        while at < width {
            let form = self.forms[at];
            let run = self.forms[at..].iter().take_while(|other| **other == form).count();
            to.layouts.push(form as u8);
            varint::put(run as u64, &mut to.layouts);
            let columns = self.turned[at * count..(at + run) * count].chunks_exact(count);
            match form {
                ColumnForm::Constant => to.constants.extend_from_slice(&rows[at..at + run]),
                ColumnForm::Column => columns.for_each(|column| to.columns.extend_from_slice(column)),
                ColumnForm::Difference => columns.for_each(|column| {
                    to.differences.push(column[0]);
                    let pairs = column.iter().zip(&column[1..]);
                    to.differences.extend(pairs.map(|(before, byte)| byte.wrapping_sub(*before)));
                }),
                ColumnForm::Row => {
                    rows.chunks_exact(width).for_each(|row| to.rows.extend_from_slice(&row[at..at + run]));
                }
                ColumnForm::Digit => {
                    rows.chunks_exact(width).for_each(|row| pack_digits(&row[at..at + run], &mut to.digits));
                }
            }
            at += run;
        }
    }

    /// Chooses a form for each of the turned columns, which have `count` bytes.
    fn choose(&mut self, count: usize) {
        let mut forms = std::mem::take(&mut self.forms);
        forms.clear();
        forms.extend(self.turned.chunks_exact(count).map(|column| self.form_of(column)));
        // Digits that are few are not text.
        let mut at = 0;
        while at < forms.len() {
            let form = forms[at];
            let run = forms[at..].iter().take_while(|other| **other == form).count();
            if form == ColumnForm::Digit && run < DIGITS_MIN {
                forms[at..at + run].fill(ColumnForm::Column);
            }
            at += run;
        }
        // A column or two inside of noise stay there, so that equal ids are found whole.
        let mut last_row = None;
        for column in 0..forms.len() {
            if forms[column] != ColumnForm::Row {
                continue;
            }
            if let Some(last) = last_row {
                let gap: &mut [ColumnForm] = &mut forms[last + 1..column];
                let changing =
                    gap.iter().all(|form| matches!(form, ColumnForm::Column | ColumnForm::Difference));
                if gap.len() <= JOIN_MAX && changing {
                    gap.fill(ColumnForm::Row);
                }
            }
            last_row = Some(column);
        }
        self.forms = forms;
    }

    fn form_of(&self, column: &[u8]) -> ColumnForm {
        let first = column[0];
        if column.iter().all(|byte| *byte == first) {
            return ColumnForm::Constant;
        }
        if column.iter().all(|byte| digit_value(*byte) != NO_DIGIT) {
            return ColumnForm::Digit;
        }
        // A sample is enough to choose by.
        let sample = &column[..column.len().min(SAMPLE_ROWS)];
        let (mut plain, mut less) = ([0u8; 256], [0u8; 256]);
        let mut before = first;
        for byte in sample {
            plain[usize::from(*byte)] += 1;
            less[usize::from(byte.wrapping_sub(before))] += 1;
            before = *byte;
        }
        // The logarithms of how often each value occurs, summed over the rows: what is missing to the most is the entropy.
        let (mut of_plain, mut of_less) = (0.0, 0.0);
        before = first;
        for byte in sample {
            of_plain += self.logs[usize::from(plain[usize::from(*byte)])];
            of_less += self.logs[usize::from(less[usize::from(byte.wrapping_sub(before))])];
            before = *byte;
        }
        let most = sample.len() as f32 * self.logs[sample.len()];
        if f32::max(of_plain, of_less) < most * (1.0 - ROW_FROM) {
            ColumnForm::Row
        } else if of_less > of_plain {
            ColumnForm::Difference
        } else {
            ColumnForm::Column
        }
    }
}

/// Puts `rows` of `width` bytes column by column.
fn turn(rows: &[u8], width: usize, to: &mut Vec<u8>) {
    let count = rows.len() / width;
    to.clear();
    to.resize(rows.len(), 0);
    for (column, values) in to.chunks_exact_mut(count).enumerate() {
        values.iter_mut().zip(rows.chunks_exact(width)).for_each(|(value, row)| *value = row[column]);
    }
}

fn pack_digits(digits: &[u8], to: &mut Vec<u8>) {
    let (pairs, odd) = digits.as_chunks::<2>();
    to.extend(pairs.iter().map(|[high, low]| digit_value(*high) << 4 | digit_value(*low) & 15));
    to.extend(odd.iter().map(|high| digit_value(*high) << 4));
}

/// What [`DIGIT_VALUES`] has for bytes that are no digits.
const NO_DIGIT: u8 = 0xFF;

/// The values of lower-case hexadecimal digits, by byte.
const DIGIT_VALUES: [u8; 256] = {
    let (mut values, mut value) = ([NO_DIGIT; 256], 0);
    while value < 16 {
        values[b"0123456789abcdef"[value] as usize] = value as u8;
        value += 1;
    }
    values
};

fn digit_value(byte: u8) -> u8 {
    DIGIT_VALUES[usize::from(byte)]
}

/// Reads what [`ColumnWriter`] wrote.
#[derive(Debug, Clone)]
pub struct ColumnReader<'a> {
    /// See [`Columns::layouts`].
    pub layouts: Cursor<'a>,
    /// See [`Columns::constants`].
    pub constants: Cursor<'a>,
    /// See [`Columns::columns`].
    pub columns: Cursor<'a>,
    /// See [`Columns::differences`].
    pub differences: Cursor<'a>,
    /// See [`Columns::rows`].
    pub rows: Cursor<'a>,
    /// See [`Columns::digits`].
    pub digits: Cursor<'a>,
}

impl ColumnReader<'_> {
    /// Fills `rows`, each of `width` bytes.
    pub fn get(&mut self, rows: &mut [u8], width: usize) -> Result<(), FormatError> {
        if width == 0 || rows.is_empty() {
            return Ok(());
        }
        let count = rows.len() / width;
        if count < LAYOUT_ROWS_MIN {
            rows.copy_from_slice(self.rows.take(rows.len())?);
            return Ok(());
        }
        let mut at = 0;
        while at < width {
            let form = self.form()?;
            let run = self.layouts.bounded((width - at) as u64)? as usize;
            if run == 0 {
                return Err(self.layouts.error("a run of no column", "one column at least"));
            }
            self.run(rows, width, count, at..at + run, form)?;
            at += run;
        }
        Ok(())
    }

    fn form(&mut self) -> Result<ColumnForm, FormatError> {
        let code = self.layouts.byte()?;
        let form = ColumnForm::ALL.get(usize::from(code)).copied();
        form.ok_or_else(|| self.layouts.error(code, "a code of ColumnForm"))
    }

    fn run(
        &mut self,
        rows: &mut [u8],
        width: usize,
        count: usize,
        run: std::ops::Range<usize>,
        form: ColumnForm,
    ) -> Result<(), FormatError> {
        match form {
            ColumnForm::Constant => {
                let values = self.constants.take(run.len())?;
                rows.chunks_exact_mut(width).for_each(|row| copy(values, &mut row[run.clone()]));
            }
            ColumnForm::Column => {
                for column in run {
                    let values = self.columns.take(count)?;
                    rows.chunks_exact_mut(width).zip(values).for_each(|(row, value)| row[column] = *value);
                }
            }
            ColumnForm::Difference => {
                for column in run {
                    let (values, mut before) = (self.differences.take(count)?, 0u8);
                    for (row, less) in rows.chunks_exact_mut(width).zip(values) {
                        before = before.wrapping_add(*less);
                        row[column] = before;
                    }
                }
            }
            ColumnForm::Row => {
                let values = self.rows.take(run.len() * count)?;
                for (row, value) in rows.chunks_exact_mut(width).zip(values.chunks_exact(run.len())) {
                    copy(value, &mut row[run.clone()]);
                }
            }
            ColumnForm::Digit => {
                let packed = run.len().div_ceil(2);
                let values = self.digits.take(packed * count)?;
                for (row, value) in rows.chunks_exact_mut(width).zip(values.chunks_exact(packed)) {
                    for (at, to) in row[run.clone()].iter_mut().enumerate() {
                        let both = value[at / 2];
                        *to =
                            b"0123456789abcdef"[usize::from(if at % 2 == 0 { both >> 4 } else { both & 15 })];
                    }
                }
            }
        }
        Ok(())
    }
}

/// Copies as many bytes as both have. Runs are short mostly: those of up to 16 bytes are copied as two words that may overlap.
#[inline]
fn copy(from: &[u8], to: &mut [u8]) {
    fn ends<const N: usize>(from: &[u8], to: &mut [u8]) {
        if let (Some(first), Some(last)) = (from.first_chunk::<N>(), from.last_chunk::<N>()) {
            to.first_chunk_mut::<N>().into_iter().for_each(|to| *to = *first);
            to.last_chunk_mut::<N>().into_iter().for_each(|to| *to = *last);
        }
    }
    match from.len() {
        1 => ends::<1>(from, to),
        2..=3 => ends::<2>(from, to),
        4..=7 => ends::<4>(from, to),
        8..=16 => ends::<8>(from, to),
        _ => to.copy_from_slice(from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stored(rows: &[u8], width: usize) -> Columns {
        let mut made = Columns::default();
        ColumnWriter::default().put(rows, width, &mut made);
        let cursor = |bytes| Cursor::new("test", bytes);
        let mut from = ColumnReader {
            layouts: cursor(&made.layouts),
            constants: cursor(&made.constants),
            columns: cursor(&made.columns),
            differences: cursor(&made.differences),
            rows: cursor(&made.rows),
            digits: cursor(&made.digits),
        };
        let mut back = vec![0; rows.len()];
        assert_eq!(from.get(&mut back, width), Ok(()));
        assert_eq!(back, rows);
        let ColumnReader { layouts, constants, columns, differences, rows, digits } = from;
        assert!(
            [layouts, constants, columns, differences, rows, digits].into_iter().all(|c| c.finish().is_ok())
        );
        made
    }

    #[test]
    fn every_column_goes_where_it_costs_least() {
        let rows: Vec<u8> = (0..100u32)
            .flat_map(|row| {
                let noise = *blake3::hash(&row.to_le_bytes()).as_bytes();
                let text = blake3::hash(&[row as u8, 1]).to_hex();
                let counter = [row as u8, 0xEE, noise[20] & 1];
                [&counter[..], &noise[..16], &text.as_bytes()[..31]].concat()
            })
            .collect();
        let made = stored(&rows, 50);
        assert_eq!(made.constants, [0xEE]);
        assert_eq!((made.differences.len(), made.columns.len()), (100, 100));
        assert_eq!((made.rows.len(), made.digits.len()), (1600, 1600));
    }

    #[test]
    fn few_rows_are_kept_as_they_are() {
        let made = stored(&[1, 2, 3, 4, 5, 6], 2);
        assert_eq!((made.rows.len(), made.layouts.len()), (6, 0));
    }

    proptest! {
        #[test]
        fn any_rows_come_back(width in 1usize..40, count in 1usize..300, seed in any::<u64>(), kinds in any::<u64>()) {
            let mut random = seed;
            let mut next = || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 40) as u8
            };
            let rows: Vec<u8> = (0..count * width)
                .map(|at| match kinds >> (at % width) & 7 {
                    0 => 9,
                    1 => (at / width) as u8,
                    2 => next() & 3,
                    3 | 4 => b"0123456789abcdef"[usize::from(next() & 15)],
                    _ => next(),
                })
                .collect();
            stored(&rows, width);
        }
    }
}
