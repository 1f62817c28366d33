//! The flags of this command in the place of the library's options, which its errors name.

/// What the library calls an option, and the flag for it.
const FLAGS: [(&str, &str); 20] = [
    ("MergeOptions::fan_in_fan_out", "--fan-in-fan-out"),
    ("MergeOptions::keep_tied", "--keep-tied"),
    ("MergeOptions::new_tensors", "--new-tensors"),
    ("MergeOptions::parameter_order", "--parameter-order"),
    ("MergeOptions::rename", "--rename"),
    ("MergeOptions::residual_base", "--residual-base"),
    (
        "MergeOptions::transposed_parameters",
        "--transposed-parameters",
    ),
    ("MergeOptions::untie", "--untie"),
    ("AdapterDir::rename", "--rename"),
    ("peft::merge_checkpoint", "lora merge"),
    ("merge_checkpoint", "lora merge"),
    ("peft::extract", "lora extract"),
    ("peft::import::import", "lora convert"),
    ("peft::import::convert", "lora convert"),
    ("peft::import", "lora convert"),
    ("Options::base", "--base"),
    ("Options::component", "--component"),
    ("Options::modules", "--modules"),
    ("`arch` of the options", "--arch"),
    (
        "`heads` of the options",
        "--heads and --kv-heads, or --base",
    ),
];

/// A message of the library's for those who use the command.
pub fn named(message: &str) -> String {
    let replaced = FLAGS.iter();
    replaced.fold(message.into(), |text, (option, flag)| {
        text.replace(option, flag)
    })
}
