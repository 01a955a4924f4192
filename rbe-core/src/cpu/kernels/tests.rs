//! That the list of levels and their tables say what is there.

use super::*;

#[test]
fn a_level_has_from_those_below_what_it_says_and_nothing_else() {
    for level in LEVELS {
        let inherited: Vec<_> = level.kernels.levels().into_iter().filter(|op| op.1 != level.name).collect();
        let mut names: Vec<_> = inherited.iter().map(|op| op.0).collect();
        let mut stated = level.inherited.concat();
        names.sort_unstable();
        stated.sort_unstable();
        assert_eq!(
            names, stated,
            "{} does not state what it has from the levels below: {inherited:?}",
            level.name
        );
    }
}

#[test]
fn every_level_but_the_lowest_stands_upon_an_earlier_one_of_the_list() {
    for (n, level) in LEVELS.iter().enumerate() {
        assert_eq!(level.below.is_none(), n == 0, "{}", level.name);
        let earlier = |below: &LevelSpec| LEVELS[..n].iter().any(|earlier| earlier.name == below.name);
        assert!(level.below.is_none_or(earlier), "{}", level.name);
    }
}
