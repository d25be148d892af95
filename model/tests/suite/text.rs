//! Tokenizer and chat templates against the reference.

use crate::{fixture, ids, json};
use quorum_model::{ChatTemplate, Checkpoint};

#[test]
fn the_tokenizer_equals_the_reference() {
    let checkpoint = Checkpoint::open(&fixture("qwen2_5_vl")).unwrap();
    let expected = json("tokenizer_expected.json");
    let cases = expected["encode"].as_array().unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let got = checkpoint.processor.encode_text(text).unwrap();
        assert_eq!(got, ids(&case["ids"]), "{text:?}");
        assert_eq!(checkpoint.processor.decode(&got, false).unwrap(), case["decoded"].as_str().unwrap());
        assert_eq!(checkpoint.processor.decode(&got, true).unwrap(), case["decoded_skip_special"].as_str().unwrap());
    }
    for case in expected["decode_random_ids"].as_array().unwrap() {
        let given = ids(&case["ids"]);
        assert_eq!(checkpoint.processor.decode(&given, false).unwrap(), case["decoded"].as_str().unwrap(), "{given:?}");
        assert_eq!(
            checkpoint.processor.decode(&given, true).unwrap(),
            case["decoded_skip_special"].as_str().unwrap(),
            "{given:?}"
        );
    }
    for (token, id) in expected["special_ids"].as_object().unwrap() {
        assert_eq!(checkpoint.processor.tokenizer().id(token).map(u64::from), id.as_u64(), "{token}");
    }
}

#[test]
fn stop_and_forbidden_tokens_have_their_roles() {
    let processor = Checkpoint::open(&fixture("qwen2_5_vl")).unwrap().processor;
    assert_eq!(processor.stop_tokens(), [506, 504]);
    // 504 is pad and bos, but it also stops.
    assert_eq!(processor.forbidden_tokens(), [505, 507, 508, 509, 510, 511]);
}

#[test]
fn templates_equal_the_reference() {
    let expected = json("chat_template_expected.json");
    let (mut rendered, mut raised) = (0, 0);
    for case in expected["cases"].as_array().unwrap() {
        let (name, conversation) = (case[0].as_str().unwrap(), case[1].as_str().unwrap());
        let template = ChatTemplate::parse(expected["templates"][name].as_str().unwrap()).unwrap();
        let mut variables = case[3].as_object().unwrap().clone();
        if let Some(tools) = variables.get_mut("tools").filter(|t| !t.is_array()) {
            *tools = expected["tools"].clone();
        }
        let got = template.render(&expected["conversations"][conversation], case[2].as_bool().unwrap(), &variables);
        match case[4].as_str() {
            Some(text) => {
                assert_eq!(got.unwrap(), text, "{name} {conversation} {variables:?}");
                rendered += 1;
            }
            None => {
                assert!(got.is_err(), "{name} {conversation} {variables:?} should raise");
                raised += 1;
            }
        }
    }
    println!("{rendered} rendered, {raised} raised");
    assert!(rendered > 100 && rendered + raised == 154);
}

#[test]
fn a_template_that_raises_gives_its_message() {
    let template = ChatTemplate::parse("{{ raise_exception('no system turn') }}").unwrap();
    let error = template.render(&serde_json::json!([]), true, &serde_json::Map::new()).unwrap_err().to_string();
    assert!(error.contains("no system turn"), "{error}");
    assert!(ChatTemplate::parse("{% if %}").unwrap_err().to_string().starts_with("chat template: "));
    let dated = ChatTemplate::parse("{{ strftime_now('%Y') }}").unwrap();
    assert!(dated.render(&serde_json::json!([]), true, &serde_json::Map::new()).is_err());
}

#[test]
fn tojson_prints_as_python_does() {
    let template =
        ChatTemplate::parse("{{ messages | tojson }}|{{ messages | tojson(indent=2) }}|{{ true }}{{ none }}").unwrap();
    let value = serde_json::json!([{"z": 1, "a": [true, null, 1e-6, 2.0, "é<&\"\n"], "e": {}, "l": []}]);
    let got = template.render(&value, true, &serde_json::Map::new()).unwrap();
    let line = r#"[{"z": 1, "a": [true, null, 1e-06, 2.0, "é<&\"\n"], "e": {}, "l": []}]"#;
    let block = "[\n  {\n    \"z\": 1,\n    \"a\": [\n      true,\n      null,\n      1e-06,\n      2.0,\n      \"é<&\\\"\\n\"\n    ],\n    \"e\": {},\n    \"l\": []\n  }\n]";
    assert_eq!(got, format!("{line}|{block}|TrueNone"));
}
