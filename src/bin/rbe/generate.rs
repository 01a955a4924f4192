//! `rbe generate`

use crate::chat::{ChatTemplate, Message};
use crate::device::DeviceArgs;
use crate::language;
use crate::layers::Layers;
use crate::print;
use crate::sampling::SamplingArgs;
use crate::source::Source;
use crate::writer::{Prompt, Speed, Writer};
use clap::Args;
use std::io::{Write, stdout};
use std::path::PathBuf;

/// Continue a text with a model, compressed or not, or let it answer
///
/// How tokens are chosen is what generation_config.json says (do_sample, temperature, top_k, top_p), unless a flag says
/// otherwise; without either always the likeliest. The text ends at a token that generation_config.json or config.json says
/// ends it.
#[derive(Args)]
pub(crate) struct Generate {
    /// Model directory with config.json and tokenizer.json, a GGUF file, or a repository of the hub (org/name)
    model: PathBuf,
    /// The text to continue, or with --chat what is said to the model
    #[arg(long, short)]
    prompt: String,
    /// Let the model answer, by its chat template (chat_template.jinja, or chat_template in tokenizer_config.json)
    #[arg(long)]
    chat: bool,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// At most so many tokens
    #[arg(short, value_name = "N", default_value_t = 100)]
    n: usize,
    /// End before this string; may be given several times
    #[arg(long, value_name = "STRING", value_parser = not_empty)]
    stop: Vec<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    layers: Layers,
    #[command(flatten)]
    device: DeviceArgs,
}

fn not_empty(text: &str) -> Result<String, String> {
    match text.is_empty() {
        true => Err("every text has the empty string at its beginning".into()),
        false => Ok(text.to_owned()),
    }
}

impl Generate {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let source = Source::open(&self.model)?;
        let tokenizer = language::tokenizer(source.path())?;
        let directory = language::directory(source.path());
        let chat = match self.chat {
            true => Some(self.conversation(&ChatTemplate::open(directory)?)?),
            false => None,
        };
        let prompt = chat.as_deref().map_or(Prompt::Text(&self.prompt), Prompt::Chat);
        let chooser = self.sampling.chooser(directory)?;
        self.layers.apply();
        let language = self.device.open(source.path())?;
        let say = |text: &str| -> anyhow::Result<()> {
            let mut out = stdout().lock();
            out.write_all(text.as_bytes())?;
            Ok(out.flush()?)
        };
        let writer = Writer { tokenizer: &tokenizer, prompt, count: self.n, chooser, stops: &self.stop };
        let Speed { read, read_rate, written, written_rate } = writer.write(&language.model, say)?;
        say("\n")?;
        print::note(&format!(
            "{read} tokens read, {read_rate:.0} per second; {written} written, {written_rate:.0} per second"
        ));
        Ok(())
    }

    /// What the model reads before it answers.
    fn conversation(&self, template: &ChatTemplate) -> anyhow::Result<String> {
        let system = self.system.iter().map(|content| Message { role: "system", content });
        let user = Message { role: "user", content: &self.prompt };
        template.render(&system.chain([user]).collect::<Vec<_>>())
    }
}
