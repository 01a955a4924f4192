//! That the list of levels and their tables say what is there.

use super::*;

#[test]
fn a_level_has_from_those_below_what_it_says_and_nothing_else() {
    for level in LEVELS {
        let inherited: Vec<_> = level.kernels.levels().into_iter().filter(|op| op.1 != level.name).collect();
        let names: Vec<_> = inherited.iter().map(|op| op.0).collect();
        assert_eq!(
            names, level.inherited,
            "{} does not state what it has from the levels below: {inherited:?}",
            level.name
        );
    }
}

#[test]
fn levels_stand_in_their_order_each_upon_the_one_below() {
    assert!(LEVELS[0].below.is_none());
    for pair in LEVELS.windows(2) {
        assert!(pair[1].below.is_some_and(|below| below.name == pair[0].name), "{}", pair[1].name);
        assert!(pair[0].is_available() || !pair[1].is_available());
    }
}
