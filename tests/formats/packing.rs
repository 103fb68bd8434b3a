//! pglz and LZ4 as deltas.md describes them, word for word and as slow as that: for the second reader, and to make vectors.

use std::collections::HashMap;

/// Equal bytes at `a` and `b`, at most `most`.
fn equal(input: &[u8], a: usize, b: usize, most: usize) -> usize {
    (0..most).take_while(|at| input[a + at] == input[b + at]).count()
}

pub fn pglz(input: &[u8], unsigned: bool) -> Vec<u8> {
    let n = input.len();
    let lists = match n {
        _ if n < 128 => 512,
        _ if n < 256 => 1024,
        _ if n < 512 => 2048,
        _ if n < 1024 => 4096,
        _ => 8192,
    };
    let value = |at: usize| if unsigned { i32::from(input[at]) } else { i32::from(input[at] as i8) };
    let key = |at: usize| {
        let key = match n - at {
            0..4 => value(at),
            _ => (64 * value(at)) ^ (16 * value(at + 1)) ^ (4 * value(at + 2)) ^ value(at + 3),
        };
        key.rem_euclid(lists)
    };
    let mut items: Vec<(bool, Vec<u8>)> = Vec::new();
    let mut earlier: HashMap<i32, Vec<usize>> = HashMap::new();
    let mut at = 0;
    while at < n {
        let (mut best, mut distance, mut good) = (0, 0, 128);
        let places = earlier.get(&key(at)).cloned().unwrap_or_default();
        for (turn, place) in places.iter().rev().enumerate() {
            if turn > 0 {
                if best >= good {
                    break;
                }
                good -= good / 10;
            }
            if at - place > 4094 {
                break;
            }
            let len = equal(input, at, *place, 273.min(n - at));
            if len > best {
                (best, distance) = (len, at - place);
            }
        }
        let taken = if best >= 3 { best } else { 1 };
        items.push(match best {
            0..3 => (false, vec![input[at]]),
            3..18 => (true, vec![(((distance >> 8) << 4) | (best - 3)) as u8, distance as u8]),
            _ => (true, vec![(((distance >> 8) << 4) | 15) as u8, distance as u8, (best - 18) as u8]),
        });
        (at..at + taken).for_each(|place| earlier.entry(key(place)).or_default().push(place));
        at += taken;
    }
    let mut out = Vec::new();
    for group in items.chunks(8) {
        out.push(group.iter().enumerate().map(|(bit, (tag, _))| u8::from(*tag) << bit).sum());
        group.iter().for_each(|(_, bytes)| out.extend(bytes));
    }
    out
}

/// What has been looked up.
struct Table<'a> {
    input: &'a [u8],
    last: HashMap<u32, usize>,
}

impl Table<'_> {
    fn four(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.input[at..at + 4].try_into().unwrap())
    }

    fn look_up(&mut self, at: usize) -> usize {
        let hash = self.four(at).wrapping_mul(2_654_435_761) >> 19;
        self.last.insert(hash, at).unwrap_or(0)
    }

    /// The first place of a search from `from` on with a copy, and the place it is of.
    fn search(&mut self, from: usize) -> Option<(usize, usize)> {
        let step = |k: usize| if k >= 67 { (k + 61) / 64 } else { 1 };
        let (mut k, mut place) = (1, from);
        loop {
            if place + step(k + 1) > self.input.len() - 11 {
                return None;
            }
            let found = self.look_up(place);
            if self.four(found) == self.four(place) {
                return Some((place, found));
            }
            k += 1;
            place += step(k);
        }
    }
}

pub fn lz4(input: &[u8]) -> Vec<u8> {
    let n = input.len();
    let (mut out, mut literals) = (Vec::new(), 0);
    let mut table = Table { input, last: HashMap::new() };
    let mut next = if n < 13 { None } else { table.search(1) };
    while let Some((mut place, mut from)) = next {
        while from > 0 && place > literals && input[place - 1] == input[from - 1] {
            (place, from) = (place - 1, from - 1);
        }
        let mut end = place + equal(input, place, from, n - 5 - place);
        sequence(&input[literals..place], Some((place - from, end - place)), &mut out);
        next = loop {
            literals = end;
            if end >= n - 11 {
                break None;
            }
            table.look_up(end - 2);
            let from = table.look_up(end);
            if table.four(from) != table.four(end) {
                break table.search(end + 1);
            }
            let len = equal(input, end, from, n - 5 - end);
            sequence(&[], Some((end - from, len)), &mut out);
            end += len;
        };
    }
    sequence(&input[literals..], None, &mut out);
    out
}

fn sequence(literals: &[u8], copy: Option<(usize, usize)>, out: &mut Vec<u8>) {
    let rest = |len: usize, out: &mut Vec<u8>| {
        if len >= 15 {
            out.extend(vec![255; (len - 15) / 255]);
            out.push(((len - 15) % 255) as u8);
        }
    };
    let more = copy.map_or(0, |(_, len)| len - 4);
    out.push((literals.len().min(15) * 16 + more.min(15)) as u8);
    rest(literals.len(), out);
    out.extend(literals);
    if let Some((distance, _)) = copy {
        out.extend((distance as u16).to_le_bytes());
        rest(more, out);
    }
}
