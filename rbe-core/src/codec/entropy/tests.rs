use super::*;
use crate::codec::bytes::{Reader, Writer};
use proptest::prelude::*;

fn counts(symbols: &[u8]) -> Counts {
    let mut counts = [0; SYMBOLS];
    symbols.iter().for_each(|symbol| counts[usize::from(*symbol)] += 1);
    counts
}

/// Symbols of which a few are frequent.
fn symbols(count: usize, spread: u64) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % spread
    };
    (0..count).map(|_| next().min(next()) as u8).collect()
}

fn round_trip<const N: usize>(runs: &[Vec<u8>]) -> usize {
    let tables: Vec<Table> = runs.iter().map(|run| Table::new(&counts(run))).collect();
    let encoders: Vec<_> = tables.iter().map(Table::encoder).collect();
    let mut writer = Writer::default();
    let pairs: Vec<_> = runs.iter().map(|run| &run[..]).zip(&encoders).collect();
    encode::<N>(&pairs, &mut writer);
    let bytes = writer.into_bytes();
    let mut reader = Reader::new(&bytes);
    let mut lanes = Lanes::<N>::read(&mut reader).unwrap();
    assert!(reader.take(1, "").is_err(), "bytes are left");
    for (run, table) in runs.iter().zip(&tables) {
        let mut out = vec![0; run.len()];
        lanes.decode(&table.decoder(), &mut out);
        assert_eq!(&out, run);
    }
    lanes.finish().unwrap();
    bytes.len()
}

#[test]
fn runs_of_every_length_come_back() {
    for length in [0, 1, 3, 4, 5, 1000] {
        for spread in [1, 2, 7, 256] {
            let runs = [symbols(length, spread), symbols(3, 256), vec![], symbols(length / 2, 5)];
            round_trip::<1>(&runs);
            round_trip::<4>(&runs);
        }
    }
}

#[test]
fn symbols_take_what_their_table_says() {
    let run = symbols(100_000, 60);
    let (table, counts) = (Table::new(&counts(&run)), counts(&run));
    let entropy: f64 =
        counts.iter().filter(|n| **n > 0).map(|n| -(*n as f64) * (*n as f64 / 1e5).log2()).sum();
    let bits = table.cost(&counts) as f64 / 65536.0;
    assert!(bits > entropy && bits < 1.001 * entropy, "{bits} bits, entropy {entropy}");
    let coded = 8.0 * round_trip::<4>(&[run]) as f64;
    // Lanes round up to whole words.
    assert!((bits..bits + 300.0).contains(&coded), "{coded} bits coded, {bits} expected");
}

#[test]
fn tables_come_back_and_nonsense_is_refused() {
    let mut lopsided = [0; SYMBOLS];
    (lopsided[7], lopsided[9], lopsided[255]) = (u64::MAX >> 20, 1, 1);
    for counts in [[0; SYMBOLS], [1; SYMBOLS], lopsided, counts(&symbols(999, 40))] {
        let table = Table::new(&counts);
        let mut writer = Writer::default();
        table.write(&mut writer);
        let bytes = writer.into_bytes();
        assert_eq!(bytes.len(), table.size_in_bytes());
        let mut reader = Reader::new(&bytes);
        assert_eq!(Table::read(&mut reader).unwrap(), table);
        assert!(reader.take(1, "").is_err());
    }
    let refused = |bytes: &[u8], reason: &str| {
        let error = Table::read(&mut Reader::new(bytes)).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    refused(&[3, 4, 100, 1], "sum to 101, not 4096");
    refused(&[3, 4, 0, 0x80, 0x20], "begins or ends with none");
    refused(&[3, 3, 0xff, 0xff, 0xff, 0xff, 0xff], "more than 28 bits");
    refused(&[3, 3, 0xff, 0xff, 0x7f], "sum to 4097");
    refused(&[9, 3], "sum to 0");
    refused(&[0, 255, 1], "frequencies need 1 bytes");
}

#[test]
fn words_that_were_not_meant_are_refused() {
    let run = symbols(500, 30);
    let table = Table::new(&counts(&run));
    let mut writer = Writer::default();
    encode::<1>(&[(&run, &table.encoder())], &mut writer);
    let bytes = writer.into_bytes();
    let decode = |bytes: &[u8], count: usize| {
        let mut lanes = Lanes::<1>::read(&mut Reader::new(bytes))?;
        lanes.decode(&table.decoder(), &mut vec![0; count]);
        lanes.finish()
    };
    decode(&bytes, 500).unwrap();
    // The last symbols before the state 0 may be worth nothing, but not twenty.
    assert!(decode(&bytes, 480).is_err());
    assert!(decode(&bytes[..bytes.len() - 1], 500).is_err());
    let mut longer = bytes;
    longer[0] += 1;
    longer.extend([1, 0, 0, 0]);
    assert!(decode(&longer, 500).unwrap_err().to_string().contains("do not end where their lane does"));
    assert!(decode(&[1, 0, 0, 0, 0], 1).unwrap_err().to_string().contains("first word is 0"));
}

#[test]
fn chunks_end_where_they_are_full() {
    let chunks = |sizes: &[usize]| chunks(sizes.iter().copied(), 10);
    assert!(chunks(&[]).is_empty() && chunks(&[0, 0]).is_empty());
    assert_eq!(chunks(&[3, 0, 7, 12, 0, 4, 0]), [0..3, 3..4, 4..7]);
    assert_eq!(chunks(&[5, 4]), std::slice::from_ref(&(0..2)));
    assert_eq!(chunks(&[5, 5, 0]), std::slice::from_ref(&(0..2)));
}

proptest! {
    #[test]
    fn raw_bits_come_back(values in proptest::collection::vec((any::<u32>(), 0u32..=32), 0..200)) {
        let mut raw = RawWriter::default();
        let masked = |(value, count): (u32, u32)| (u64::from(value) & ((1 << count) - 1)) as u32;
        values.iter().for_each(|value| raw.put(masked(*value), value.1));
        let mut writer = Writer::default();
        raw.finish(&mut writer);
        let bytes = writer.into_bytes();
        let mut bits = RawBits::read(&mut Reader::new(&bytes)).unwrap();
        for value in &values {
            prop_assert_eq!(bits.take(value.1), masked(*value));
        }
        prop_assert!(bits.finish().is_ok());
        let mut bits = RawBits::read(&mut Reader::new(&bytes)).unwrap();
        values.iter().for_each(|value| { bits.take(value.1); });
        (0..8).for_each(|_| { bits.take(1); });
        prop_assert!(bits.finish().is_err());
    }
}
