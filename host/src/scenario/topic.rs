//! Topics and filters: placeholders, syntax, matching. MQTT 3.1.1 and 5, section 4.7.

/// Longest topic or filter in bytes (MQTT 1.5.3).
const TOPIC_BYTES_MAX: usize = 65_535;

/// Replaces `{group}` by `group` and `{client}` by the client's number, from 0.
#[must_use]
pub fn expand(template: &str, group: &str, client: u32) -> String {
    // The number first: a group's name is free text and may itself read `{client}`.
    template.replace("{client}", &client.to_string()).replace("{group}", group)
}

/// Whether clients of one group differ in this topic or filter.
#[must_use]
pub fn is_per_client(template: &str) -> bool {
    template.contains("{client}")
}

/// Checks an expanded topic of a publish.
///
/// # Errors
/// The reason, as a sentence without subject.
pub fn check_topic(topic: &str) -> Result<(), String> {
    check_text(topic)?;
    if topic.contains(['+', '#']) {
        return Err(format!("a topic has no wildcards, found {topic:?}"));
    }
    if topic.starts_with('$') {
        return Err(format!("topics that start with $ belong to the broker, found {topic:?}"));
    }
    Ok(())
}

/// Checks an expanded filter.
///
/// # Errors
/// The reason, as a sentence without subject.
pub fn check_filter(filter: &str) -> Result<(), String> {
    check_text(filter)?;
    if filter == "$share" || filter.starts_with("$share/") {
        return Err(format!("shared subscriptions are not part of schema 1, found {filter:?}"));
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains('#') && (level != "#" || levels.peek().is_some()) {
            return Err(format!("# stands alone in the last level, found {filter:?}"));
        }
        if level.contains('+') && level != "+" {
            return Err(format!("+ stands alone in its level, found {filter:?}"));
        }
    }
    Ok(())
}

fn check_text(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if text.len() > TOPIC_BYTES_MAX {
        return Err(format!("at most {TOPIC_BYTES_MAX} bytes, found {}", text.len()));
    }
    if text.contains('\0') {
        return Err("must not hold a NUL character".to_owned());
    }
    if text.contains(['{', '}']) {
        return Err(format!("only {{group}} and {{client}} are replaced, found {text:?}"));
    }
    Ok(())
}

/// Whether a valid filter matches a valid topic. Wildcards in the first level do not match a
/// leading `$`.
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut topic_levels = topic.split('/');
    for level in filter.split('/') {
        match (level, topic_levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (wanted, Some(found)) if wanted == found => {}
            _ => return false,
        }
    }
    topic_levels.next().is_none()
}
