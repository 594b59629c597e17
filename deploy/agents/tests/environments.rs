//! The environments by themselves: tasks can be solved, and wrong actions are observations.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test fails by panicking

use hone_agents::environment::{Environment, Seen};
use hone_agents::form::Action;
use hone_agents::gui::Gui;
use hone_agents::policy::Policy;
use hone_agents::swe::Swe;
use hone_agents::terminal::Terminal;
use hone_agents::tools::Tools;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Plays a task with a policy that needs no engine; whether it was solved, and in how many steps.
async fn play(environment: &mut dyn Environment, policy: Policy, seed: u64) -> (bool, usize) {
    let mut rng = rng(seed);
    let opening = environment.begin(&mut rng).await.unwrap();
    assert!(!environment.prompt().is_empty() && opening.len() > 1);
    let mut steps = 0;
    while environment.done().is_none() && steps < environment.steps_max() {
        let form = environment.form();
        let action = policy.choose(environment, &form, &mut rng).unwrap();
        environment.act(&action).await.unwrap();
        steps += 1;
    }
    let solved = environment.done() == Some(true);
    environment.end().await.unwrap();
    (solved, steps)
}

async fn oracle_solves_all_and_chance_does_not(environment: &mut dyn Environment, seeds: u64) {
    let more = std::env::var("HONE_AGENTS_SEEDS").ok().and_then(|text| text.parse().ok());
    let seeds = more.unwrap_or(seeds);
    let mut solved = 0;
    for seed in 0..seeds {
        let (right, steps) = play(environment, Policy::Oracle, seed).await;
        assert!(right, "seed {seed}: the oracle failed after {steps} steps");
        solved += u64::from(play(environment, Policy::Random, seed).await.0);
    }
    eprintln!("{}: chance solved {solved} of {seeds}", environment.kind());
    assert!(solved < seeds, "tasks that chance always solves show nothing");
}

async fn same_seed_same_task(environment: &mut dyn Environment) {
    let mut openings: Vec<Vec<Value>> = Vec::new();
    for seed in [7, 7, 8] {
        openings.push(environment.begin(&mut rng(seed)).await.unwrap());
        environment.end().await.unwrap();
    }
    assert_eq!(openings[0], openings[1]);
    assert_ne!(openings[0], openings[2]);
}

async fn act(
    environment: &mut dyn Environment,
    tool: Option<&str>,
    fields: &[(&str, &str)],
) -> Seen {
    environment.act(&Action::new(tool, fields)).await.unwrap()
}

#[tokio::test]
async fn terminal_tasks_can_be_solved() {
    let mut terminal = Terminal::new(false);
    oracle_solves_all_and_chance_does_not(&mut terminal, 12).await;
    same_seed_same_task(&mut terminal).await;
}

#[tokio::test]
async fn a_terminal_goal_counts_what_was_done_not_what_was_said() {
    let mut terminal = Terminal::new(true);
    for seed in 0..6 {
        terminal.begin(&mut rng(seed)).await.unwrap();
        let command = terminal.goal().unwrap().command();
        let said =
            act(&mut terminal, Some("shell"), &[("command", &format!("echo '{command}'"))]).await;
        assert!(!said.progress, "{command} was only said");
        let failed = act(&mut terminal, Some("shell"), &[("command", "cat nothing.txt")]).await;
        assert!(!failed.progress && failed.text.ends_with("exit code: 1"), "{}", failed.text);
        let done = act(&mut terminal, Some("shell"), &[("command", &command)]).await;
        assert!(done.progress, "{command}: {}", done.text);
        terminal.end().await.unwrap();
    }
}

#[tokio::test]
async fn tool_questions_can_be_answered() {
    let mut tools = Tools::new(false);
    oracle_solves_all_and_chance_does_not(&mut tools, 30).await;
    same_seed_same_task(&mut tools).await;
}

#[tokio::test]
async fn a_failed_call_may_be_made_again_and_a_wrong_answer_ends_the_question() {
    let mut tools = Tools::new(false);
    tools.begin(&mut rng(1)).await.unwrap();
    let written = act(&mut tools, Some("sql"), &[("query", "DELETE FROM items")]).await;
    assert_eq!(written.text, "error: only SELECT is allowed");
    assert_eq!(tools.form().tools.len(), 2, "a call is wanted again");
    let empty = act(&mut tools, Some("sql"), &[("query", "SELECT 1 WHERE 0")]).await;
    assert_eq!(empty.text, "no rows");
    assert!(tools.form().tools.is_empty(), "now an answer is wanted");
    let wrong = act(&mut tools, None, &[("answer", "-1")]).await;
    assert!(!wrong.progress && tools.prompt().starts_with("Checker: wrong.\n"));
    let call = tools.oracle();
    assert!(tools.act(&call).await.unwrap().progress);
    let answer = tools.oracle();
    assert!(tools.act(&answer).await.unwrap().progress);
    assert_eq!(tools.done(), Some(false), "one of two was wrong");
    tools.end().await.unwrap();
}

#[tokio::test]
async fn swe_tasks_can_be_solved() {
    let mut swe = Swe::new(false);
    oracle_solves_all_and_chance_does_not(&mut swe, 6).await;
    same_seed_same_task(&mut swe).await;
}

#[tokio::test]
async fn a_patch_that_does_not_apply_changes_nothing_and_tests_cannot_be_talked_away() {
    let mut swe = Swe::new(true);
    swe.begin(&mut rng(3)).await.unwrap();
    let before = swe.prompt();
    let nowhere = act(&mut swe, None, &[("search", "no such line"), ("replace", "x")]).await;
    assert!(nowhere.text.contains("does not apply") && !nowhere.progress, "{}", nowhere.text);
    assert_eq!(swe.prompt(), before);
    let repair = swe.oracle();
    let line = repair.get("search").to_owned();
    // Code that leaves as if all were well, or writes over the tests: the tests decide.
    let exit = "import sys, os; open('test_all.py', 'w').write(''); print('OK'); sys.exit(3)";
    let cheat = act(&mut swe, None, &[("search", &line), ("replace", exit)]).await;
    assert_eq!(swe.done(), None, "{}", cheat.text);
    let back = act(&mut swe, None, &[("search", exit), ("replace", &line)]).await;
    assert!(back.text.contains("exit code: 1"), "{}", back.text);
    let broken = act(&mut swe, None, &[("search", &line), ("replace", "return (")]).await;
    assert!(broken.text.contains("SyntaxError") && swe.done().is_none(), "{}", broken.text);
    swe.end().await.unwrap();
}

#[tokio::test]
async fn code_that_never_ends_is_a_failed_test() {
    let mut swe = Swe::new(true);
    swe.begin(&mut rng(4)).await.unwrap();
    let line = swe.oracle().get("search").to_owned();
    let endless = [("search", line.as_str()), ("replace", "while True: pass")];
    let seen = act(&mut swe, None, &endless).await;
    assert!(!seen.progress && swe.done().is_none(), "{}", seen.text);
    swe.end().await.unwrap();
}

/// The browser, or `None` where there is none; `HONE_CHROMIUM=1` (deploy/test.sh) forbids that.
async fn gui(screenshots: bool) -> Option<Gui> {
    match Gui::start(false, screenshots).await {
        Ok(gui) => Some(gui),
        Err(error) => {
            assert!(std::env::var_os("HONE_CHROMIUM").is_none(), "{error}");
            eprintln!("SKIPPED: {error}; deploy/test.sh installs it");
            None
        }
    }
}

#[tokio::test]
async fn gui_tasks_can_be_solved() {
    let Some(mut gui) = gui(false).await else { return };
    oracle_solves_all_and_chance_does_not(&mut gui, 6).await;
    same_seed_same_task(&mut gui).await;
}

#[tokio::test]
async fn a_page_answers_wrong_actions_in_words() {
    let Some(mut gui) = gui(true).await else { return };
    gui.begin(&mut rng(2)).await.unwrap();
    for (action, expected) in [
        ("click Save #99", "there is no element #99"),
        ("click Save #0", "there is no element #0"),
        ("click #99999999999999999999", "there is no element"),
        ("scroll down", "say `click LABEL #N`"),
        ("", "say `click LABEL #N`"),
    ] {
        let seen = act(&mut gui, None, &[("action", action)]).await;
        assert!(seen.text.contains(expected) && !seen.progress, "{action}: {}", seen.text);
        let shot = seen.image.unwrap();
        assert!(shot.starts_with("data:image/jpeg;base64,/9j/"), "a real picture");
    }
    let page = gui.prompt();
    let number = |role: &str| page.lines().position(|line| line.contains(role)).unwrap() + 1;
    let typed = format!("type Hello into it #{}", number("button"));
    let seen = act(&mut gui, None, &[("action", &typed)]).await;
    assert!(seen.text.contains("is a button, not a textbox"), "{}", seen.text);
    let typed = format!("type <b>\"Hi\"</b> into it #{}", number("textbox"));
    act(&mut gui, None, &[("action", &typed)]).await;
    assert!(gui.prompt().contains("<b>\"Hi\"</b>"), "text is text: {}", gui.prompt());
    let again = format!("type Bye into it #{}", number("textbox"));
    act(&mut gui, None, &[("action", &again)]).await;
    assert!(gui.prompt().contains("= \"Bye\""), "typing replaces: {}", gui.prompt());
    assert_eq!(gui.done(), None);
}
