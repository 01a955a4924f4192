//! What a matrix is in a model, as its name tells.

/// What a matrix does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Gives each token its vector: rows are looked up.
    Table,
    /// Gives each token its logit: rows are outputs.
    Head,
    /// A table that is the head too.
    TiedTable,
    /// Gives each position its vector.
    Positions,
    /// Values, alone or beside queries and keys.
    Value,
    /// Queries, alone.
    Query,
    /// Any other layer.
    Projection,
}

/// Where in the model a matrix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// In the first sixth of the layers.
    First,
    /// Between, or in none.
    Middle,
    /// In the last sixth.
    Last,
}

impl Depth {
    /// Of the weight `name` in a model of so many layers.
    pub(super) fn of(name: &str, layers: usize) -> Self {
        match layer(name) {
            Some(layer) if 6 * layer < layers => Depth::First,
            Some(layer) if 6 * (layer + 1) > 5 * layers => Depth::Last,
            _ => Depth::Middle,
        }
    }
}

/// Whether a kernel is that of a convolution that cuts images into patches which do not overlap.
pub(super) fn is_patch_embedding(name: &str) -> bool {
    name.split('.').any(|part| part.contains("patch_embed") || part == "patch_conv")
}

/// Whether a tensor of three sides is a stack of experts' matrices.
pub(super) fn is_stack(name: &str) -> bool {
    name.split('.').any(|part| part.contains("expert") || part.contains("moe"))
}

/// The number of the layer that a weight belongs to: the first number in its name.
pub(super) fn layer(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

const TABLES: [&str; 6] =
    ["embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "token_embedding"];
const HEADS: [&str; 3] = ["lm_head", "embed_out", "output"];
const POSITIONS: [&str; 4] = ["wpe", "position_embeddings", "embed_positions", "token_type_embeddings"];
/// Layers of one input, by what is left of their names.
const SHARED: [&[&str]; 4] =
    [&["q_proj", "k_proj", "v_proj"], &["query", "key", "value"], &["gate_proj", "up_proj"], &["w1", "w3"]];

/// The module that a weight belongs to and what stands before it: `model.layers.0.self_attn.` and `q_proj`.
fn module(name: &str) -> (&str, &str) {
    let path = name.strip_suffix(".weight").unwrap_or(name);
    path.split_at(path.rfind('.').map_or(0, |dot| dot + 1))
}

impl Role {
    /// Of the weight `name` in a model that ties its head to the table, or does not.
    pub(super) fn of(name: &str, tied: bool) -> Self {
        let (before, last) = module(name);
        if TABLES.contains(&last) {
            return if tied { Role::TiedTable } else { Role::Table };
        }
        // BERT has an `output` in every layer.
        if HEADS.contains(&last) && (last == "lm_head" || before.is_empty()) {
            return Role::Head;
        }
        match last {
            _ if POSITIONS.contains(&last) => Role::Positions,
            "v_proj" | "value" | "wv" => Role::Value,
            "q_proj" | "query" | "wq" => Role::Query,
            _ => Role::Projection,
        }
    }

    /// Whether each row is a token's.
    pub(super) fn has_tokens(self) -> bool {
        matches!(self, Role::Table | Role::Head | Role::TiedTable)
    }
}

/// The names of the weights, this one among them, whose layers take the same input.
pub(super) fn share_input(name: &str) -> Vec<String> {
    let (before, last) = module(name);
    let group = SHARED.into_iter().find(|group| group.contains(&last) && name.ends_with(".weight"));
    match group {
        Some(group) => group.iter().map(|last| format!("{before}{last}.weight")).collect(),
        None => vec![name.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_a_matrix_is() {
        for (name, tied, role) in [
            ("model.embed_tokens.weight", false, Role::Table),
            ("model.embed_tokens.weight", true, Role::TiedTable),
            ("transformer.wte.weight", true, Role::TiedTable),
            ("lm_head.weight", false, Role::Head),
            ("output.weight", false, Role::Head),
            ("wpe.weight", true, Role::Positions),
            ("bert.encoder.layer.0.output.dense.weight", false, Role::Projection),
            ("model.layers.3.self_attn.v_proj.weight", false, Role::Value),
            ("model.layers.3.mlp.down_proj.weight", true, Role::Projection),
            ("model.layers.3.self_attn.q_proj.weight", false, Role::Query),
            ("x", false, Role::Projection),
        ] {
            assert_eq!(Role::of(name, tied), role, "{name}");
        }
    }

    #[test]
    fn patch_embeddings_are_known_by_their_names() {
        for name in [
            "vision_model.embeddings.patch_embedding.weight",
            "vit.embeddings.patch_embeddings.projection.weight",
            "visual.patch_embed.proj.weight",
            "patch_conv.weight",
        ] {
            assert!(is_patch_embedding(name), "{name}");
        }
        assert!(!is_patch_embedding("model.encoder.conv1.weight"));
    }

    #[test]
    fn sixths_of_the_layers_are_first_and_last() {
        let depth =
            |layer: usize, layers| Depth::of(&format!("model.layers.{layer}.mlp.up_proj.weight"), layers);
        assert_eq!(
            [0, 1, 4, 5].map(|layer| depth(layer, 6)),
            [Depth::First, Depth::Middle, Depth::Middle, Depth::Last]
        );
        assert_eq!(
            [4, 5, 24, 25].map(|layer| depth(layer, 30)),
            [Depth::First, Depth::Middle, Depth::Middle, Depth::Last]
        );
        assert_eq!(Depth::of("lm_head.weight", 6), Depth::Middle);
    }

    #[test]
    fn layers_of_one_input_know_each_other() {
        let group = share_input("model.layers.3.self_attn.k_proj.weight");
        assert_eq!(group.len(), 3);
        assert_eq!(group[0], "model.layers.3.self_attn.q_proj.weight");
        assert_eq!(share_input("a.mlp.up_proj.weight"), ["a.mlp.gate_proj.weight", "a.mlp.up_proj.weight"]);
        assert_eq!(share_input("a.mlp.down_proj.weight"), ["a.mlp.down_proj.weight"]);
    }
}
