//! Chat templates: a conversation as the text that a model was trained on, by the Jinja template beside its tokenizer.

use anyhow::{Context, anyhow, bail};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// One turn of a conversation.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Message<'m> {
    pub(crate) role: &'m str,
    pub(crate) content: &'m str,
}

/// A template and the special tokens that it may write.
pub(crate) struct ChatTemplate {
    source: String,
    tokens: serde_json::Map<String, serde_json::Value>,
}

impl ChatTemplate {
    /// That of a model's directory: `chat_template.jinja`, or the one in `tokenizer_config.json`.
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("tokenizer_config.json");
        let config: serde_json::Value = match path.is_file() {
            true => {
                let cannot = || format!("cannot read {}", path.display());
                let text = std::fs::read_to_string(&path).with_context(cannot)?;
                serde_json::from_str(&text).with_context(cannot)?
            }
            false => serde_json::Value::Null,
        };
        let file = directory.join("chat_template.jinja");
        let source = match file.is_file() {
            true => Some(
                std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?,
            ),
            false => in_config(&config),
        };
        let Some(source) = source else {
            bail!(
                "{} has no chat template, neither chat_template.jinja nor chat_template in tokenizer_config.json; \
                 the model may not be one to talk to: leave --chat out",
                directory.display()
            );
        };
        let token = |name: &str| {
            let said = config.get(name)?;
            said.get("content").unwrap_or(said).as_str().map(|token| (name.to_owned(), token.into()))
        };
        let tokens = ["bos_token", "eos_token", "unk_token", "pad_token"].into_iter().filter_map(token);
        Ok(Self { source, tokens: tokens.collect() })
    }

    /// The conversation up to where the model answers.
    pub(crate) fn render(&self, messages: &[Message<'_>]) -> anyhow::Result<String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.context("Jinja's syntax")?);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("strftime_now", |format: &str| strftime(format, SystemTime::now()));
        environment.add_function("raise_exception", |reason: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        });
        // Without its location and source, which the error draws over several lines.
        let cannot = |error: &Error| {
            anyhow!(
                "the chat template fails: {}",
                error.detail().map_or_else(|| error.to_string(), str::to_owned)
            )
        };
        let source = without_generation_tags(&self.source);
        let template = environment.template_from_str(&source).map_err(|error| cannot(&error))?;
        let (tokens, messages) = (Value::from(Serde(&self.tokens)), Value::from(Serde(messages)));
        let rendered = template.render(context! { messages, add_generation_prompt => true, ..tokens });
        rendered.map_err(|error| cannot(&error))
    }
}

/// `chat_template`: a template, or several with names, of which `default` counts.
fn in_config(config: &serde_json::Value) -> Option<String> {
    let said = config.get("chat_template")?;
    let several = said.as_array().and_then(|list| list.iter().find(|entry| entry["name"] == "default"));
    several.map_or(said, |entry| &entry["template"]).as_str().map(str::to_owned)
}

/// Hugging Face's own tag around what the model says, for training: here a block like any.
fn without_generation_tags(source: &str) -> String {
    let mut source = source.to_owned();
    for (tag, block) in [("generation", "if true"), ("endgeneration", "endif")] {
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            source = source.replace(&format!("{open} {tag} {close}"), &format!("{open} {block} {close}"));
        }
    }
    source
}

/// Python's `json.dumps`: a space after commas and colons, nothing escaped for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    let fails = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut out = Vec::new();
    match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)).map_err(fails)?,
        Some(indent) => {
            let spaces = " ".repeat(indent);
            let pretty = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, pretty)).map_err(fails)?;
        }
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// The time, in UTC, in Python's `strftime` format.
fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let weekday = DAYS[(days % 7) as usize];
    let (year, month, day) = date(days);
    let month_name = MONTHS[month - 1];
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        out += &match characters.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('H') => format!("{:02}", second / 3600),
            Some('M') => format!("{:02}", second / 60 % 60),
            Some('S') => format!("{:02}", second % 60),
            Some('%') => "%".to_owned(),
            other => {
                let code = other.map(String::from).unwrap_or_default();
                let reason = format!("strftime_now: %{code} is none of Y, y, m, d, B, b, A, a, H, M, S");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
        };
    }
    Ok(out)
}

/// Year, month and day of a day counted from 1970-01-01.
fn date(mut days: u64) -> (u64, usize, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// What a directory with these files makes of a question.
    fn asked(files: &[(&str, &str)], system: Option<&str>) -> anyhow::Result<String> {
        let room = tempfile::tempdir()?;
        for (name, text) in files {
            std::fs::write(room.path().join(name), text)?;
        }
        let mut messages = vec![Message { role: "user", content: "Why?" }];
        if let Some(content) = system {
            messages.insert(0, Message { role: "system", content });
        }
        ChatTemplate::open(room.path())?.render(&messages)
    }

    /// SmolLM2's own.
    const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ \
        '<|im_start|>system\\nYou are helpful<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + \
        message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ \
        '<|im_start|>assistant\\n' }}{% endif %}";

    #[test]
    fn templates_are_found_where_they_are_and_filled_in() -> anyhow::Result<()> {
        let expected = "<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(asked(&[("chat_template.jinja", CHATML)], None)?, expected);
        let config = serde_json::json!({"chat_template": CHATML}).to_string();
        assert_eq!(asked(&[("tokenizer_config.json", &config)], None)?, expected);
        let several = serde_json::json!({"chat_template": [
            {"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}
        ]});
        assert_eq!(asked(&[("tokenizer_config.json", &several.to_string())], None)?, expected);
        let said =
            asked(&[("chat_template.jinja", CHATML), ("tokenizer_config.json", "{}")], Some("Be brief"))?;
        assert!(said.starts_with("<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user"), "{said}");
        let error = asked(&[("tokenizer_config.json", "{}")], None).unwrap_err().to_string();
        assert!(error.contains("has no chat template") && error.contains("--chat"), "{error}");
        Ok(())
    }

    #[test]
    fn what_templates_use_of_python_and_of_transformers_is_there() -> anyhow::Result<()> {
        let render = |template: &str| {
            let config = r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}"#;
            asked(&[("chat_template.jinja", template), ("tokenizer_config.json", config)], None)
        };
        assert_eq!(
            render("{{ bos_token }}{{ messages[0].content.strip('?').upper() }}{{ eos_token }}")?,
            "<s>WHY</s>"
        );
        assert_eq!(render("{% if tools is defined %}x{% endif %}{{ messages | length }}")?, "1");
        assert_eq!(render("{{ {'a': [1, '<é>']} | tojson }}")?, r#"{"a": [1, "<é>"]}"#);
        assert_eq!(render("{{ [1] | tojson(indent=2) }}")?, "[\n  1\n]");
        assert_eq!(
            render(
                "{% for m in messages %}\n  {%- generation -%} {{ m.role }} {%- endgeneration -%}\n{% endfor %}"
            )?,
            "user"
        );
        let loops = "{% for n in [1, 2, 3] %}{% if n == 2 %}{% continue %}{% endif %}{{ n }}{% endfor %}";
        assert_eq!(render(loops)?, "13");
        assert_eq!(
            render(
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = 7 %}{% endfor %}{{ ns.n }}"
            )?,
            "7"
        );
        assert_eq!(render("{{ strftime_now('%Y') | length }}")?, "4");
        let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
        assert_eq!(error, "the chat template fails: roles must alternate");
        assert!(render("{% for %}").unwrap_err().to_string().contains("the chat template fails"));
        Ok(())
    }

    #[test]
    fn dates_are_the_calendars() {
        let at = |seconds| {
            strftime("%a %d %b %Y, %A %B %m/%y %H:%M:%S %%", UNIX_EPOCH + Duration::from_secs(seconds))
        };
        assert_eq!(at(0).unwrap(), "Thu 01 Jan 1970, Thursday January 01/70 00:00:00 %");
        assert_eq!(at(1_709_164_799).unwrap(), "Wed 28 Feb 2024, Wednesday February 02/24 23:59:59 %");
        assert_eq!(at(1_709_164_800).unwrap(), "Thu 29 Feb 2024, Thursday February 02/24 00:00:00 %");
        assert_eq!(at(4_107_542_400).unwrap(), "Mon 01 Mar 2100, Monday March 03/00 00:00:00 %");
        assert!(strftime("%q", UNIX_EPOCH).is_err());
    }
}
