//! Sparse bytes: pages that were written, holes for free. Knows neither names nor attributes.

use std::collections::BTreeMap;
use std::sync::Arc;

pub const PAGE: u64 = 4096;

type Page = [u8; PAGE as usize];

/// The bytes of one file. Bytes at and past `len` are zero or absent.
#[derive(Debug, Clone, Default)]
pub struct Content {
    len: u64,
    /// Shared with snapshots until written.
    pages: BTreeMap<u64, Arc<Page>>,
}

impl Content {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of memory that the pages stand for.
    pub fn allocated(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    pub fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let n = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..n];
        buf.fill(0);
        for (index, within, range) in spans(offset, n as u64) {
            if let Some(page) = self.pages.get(&index) {
                buf[range.clone()].copy_from_slice(&page[within..within + range.len()]);
            }
        }
        n
    }

    /// `offset + data.len()` must not overflow.
    pub fn write(&mut self, data: &[u8], offset: u64) {
        for (index, within, range) in spans(offset, data.len() as u64) {
            let page = self.pages.entry(index).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(page)[within..within + range.len()].copy_from_slice(&data[range]);
        }
        self.len = self.len.max(offset + data.len() as u64);
    }

    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.clear(len, self.len - len);
        }
        self.len = len;
    }

    /// Makes the range read as zeros: whole pages become holes. The length stays.
    pub fn clear(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let touched: Vec<u64> = self.pages.range(offset / PAGE..end.div_ceil(PAGE)).map(|(index, _)| *index).collect();
        for index in touched {
            let start = index * PAGE;
            let from = offset.saturating_sub(start).min(PAGE) as usize;
            let to = (end - start).min(PAGE) as usize;
            // Nothing lives past the end, so a cut that reaches it needs no page for the rest.
            if from == 0 && (to == PAGE as usize || end >= self.len) {
                self.pages.remove(&index);
            } else if let Some(page) = self.pages.get_mut(&index) {
                Arc::make_mut(page)[from..to].fill(0);
            }
        }
    }

    pub fn seek_data(&self, offset: u64) -> Option<u64> {
        let (index, _) = self.pages.range(offset / PAGE..).next()?;
        Some(offset.max(index * PAGE)).filter(|data| *data < self.len)
    }

    pub fn seek_hole(&self, offset: u64) -> Option<u64> {
        if offset >= self.len {
            return None;
        }
        let mut next = offset / PAGE;
        for (index, _) in self.pages.range(next..) {
            if *index != next {
                break;
            }
            next += 1;
        }
        Some(offset.max(next * PAGE).min(self.len))
    }
}

/// Cuts a range at page boundaries: page index, offset within the page, part of the range.
fn spans(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done;
        let within = at % PAGE;
        let n = (PAGE - within).min(len - done);
        let range = done as usize..(done + n) as usize;
        done += n;
        Some((at / PAGE, within as usize, range))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Write(u64, Vec<u8>),
        SetLen(u64),
        Clear(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let near = 0..5 * PAGE;
        prop_oneof![
            (near.clone(), prop::collection::vec(1u8.., 0..9000)).prop_map(|(o, d)| Step::Write(o, d)),
            near.clone().prop_map(Step::SetLen),
            (near.clone(), 0..3 * PAGE).prop_map(|(o, l)| Step::Clear(o, l)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn behaves_as_a_plain_vector(steps in prop::collection::vec(step(), 1..20)) {
            let mut content = Content::default();
            let mut plain: Vec<u8> = Vec::new();
            for step in steps {
                match step {
                    Step::Write(offset, data) => {
                        content.write(&data, offset);
                        let end = offset as usize + data.len();
                        if !data.is_empty() || end > plain.len() {
                            plain.resize(plain.len().max(end), 0);
                        }
                        plain[offset as usize..end].copy_from_slice(&data);
                    }
                    Step::SetLen(len) => {
                        content.set_len(len);
                        plain.resize(len as usize, 0);
                    }
                    Step::Clear(offset, len) => {
                        content.clear(offset, len);
                        let end = ((offset + len) as usize).min(plain.len());
                        if let Some(range) = plain.get_mut(offset as usize..end) {
                            range.fill(0);
                        }
                    }
                }
                let mut read = vec![7; plain.len() + 10];
                prop_assert_eq!(content.read(&mut read, 0), plain.len());
                prop_assert!(read[..plain.len()] == plain[..]);
                // Whatever is not zero lies in data, and data and holes alternate up to the end.
                let mut at = 0;
                while let Some(data) = content.seek_data(at) {
                    prop_assert!(plain[at as usize..data as usize].iter().all(|b| *b == 0));
                    at = content.seek_hole(data).expect("data lies before the end");
                    prop_assert!(at > data);
                }
                prop_assert!(plain[at as usize..].iter().all(|b| *b == 0));
            }
        }
    }

    #[test]
    fn a_terabyte_of_hole_costs_nothing() {
        let mut content = Content::default();
        content.write(b"x", 1 << 40);
        assert_eq!((content.len(), content.allocated()), ((1 << 40) + 1, PAGE));
        assert_eq!(content.seek_data(5), Some(1 << 40));
        assert_eq!(content.seek_hole(5), Some(5));
        content.clear(0, u64::MAX);
        assert_eq!((content.len(), content.allocated()), ((1 << 40) + 1, 0));
        assert_eq!(content.seek_data(0), None);
    }
}
