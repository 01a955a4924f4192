//! Models in several GGUF files, `NAME-00001-of-00003.gguf` and on, as llama.cpp's `gguf-split` writes them.

/// Digits of a file's number, and of how many there are.
const DIGITS: usize = 5;
/// More than any model has, and as many names as are made at most.
const MOST: usize = 1 << 12;

/// The names of the files that a model is split into, from the first, where `name` is one of them; of any other file its own
/// name alone.
///
/// ```
/// let both = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
/// assert_eq!(candle_rbe::archive::gguf_parts("m-00002-of-00002.gguf"), both);
/// assert_eq!(candle_rbe::archive::gguf_parts("m.gguf"), ["m.gguf"]);
/// ```
pub fn gguf_parts(name: &str) -> Vec<String> {
    match count(name) {
        Some((stem, count)) => {
            (1..=count).map(|part| format!("{stem}-{part:0DIGITS$}-of-{count:0DIGITS$}.gguf")).collect()
        }
        None => vec![name.to_owned()],
    }
}

/// What stands before the number of a file, and how many there are.
fn count(name: &str) -> Option<(&str, usize)> {
    let number = |text: &str| {
        let digits = text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<usize>().ok().filter(|_| digits)
    };
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let (part, count) = (number(part)?, number(count)?);
    (1..=count).contains(&part).then_some((stem, count)).filter(|(_, count)| *count <= MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_parts_stand_alone() {
        assert_eq!(gguf_parts("a-b-00003-of-00003.gguf")[0], "a-b-00001-of-00003.gguf");
        for name in [
            "m-00000-of-00002.gguf",
            "m-00003-of-00002.gguf",
            "m-1-of-2.gguf",
            "m-0000x-of-00002.gguf",
            "m-00001-of-99999.gguf",
            "00001-of-00002.gguf",
            "m-00001-of-00002",
        ] {
            assert_eq!(gguf_parts(name), [name]);
        }
    }
}
