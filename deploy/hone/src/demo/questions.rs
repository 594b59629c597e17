//! What the scripted user asks. The held-out questions are never asked before a correction, so
//! never trained on.

/// Questions that may be corrected, in the order in which they are asked.
pub const ASKED: [&str; 20] = [
    "How do I boil an egg?",
    "Why is the sky blue?",
    "How can I sleep better?",
    "What should I pack for a weekend trip?",
    "How do I get a coffee stain out of a shirt?",
    "What is a good way to learn a new language?",
    "How do I keep my houseplants alive?",
    "Why do cats purr?",
    "How can I save money on groceries?",
    "What is the best way to clean a window?",
    "How do I make a paper airplane?",
    "What should I do when I have a headache?",
    "How do I write a thank you note?",
    "Why do leaves change color in autumn?",
    "How can I remember names better?",
    "What is a healthy breakfast?",
    "How do I choose a good book to read?",
    "How do I cook rice?",
    "What makes bread rise?",
    "How do I start jogging?",
];

/// Questions on which every generation is measured.
pub const HELD_OUT: [&str; 16] = [
    "How do I make a cup of tea?",
    "Why is the ocean salty?",
    "How can I stay focused while I study?",
    "What should I bring to a picnic?",
    "How do I fix a flat bicycle tire?",
    "How do I train a puppy to sit?",
    "What is a good gift for a friend?",
    "How do I keep my kitchen tidy?",
    "Why do we dream?",
    "How can I wake up early?",
    "How do I make a simple salad?",
    "What causes thunder?",
    "How do I keep bread fresh?",
    "What should I wear on a rainy day?",
    "How do I peel garlic quickly?",
    "Why do we yawn?",
];
