// The states of layers that keep one, in slots of SLOT_WORDS numbers; a layer's begin at `first_word` of a slot. A step
// reads those before the rows of each sequence from one slot, and stores them in others behind rows that say so. Include
// after lib/step.glsl. Constant SLOT_WORDS and push constant first_word are the including file's.
#define NO_SLOT 0xffffffffu

uint word_of_slot(uint number) { return number == 0 ? NO_SLOT : (number - 1) * SLOT_WORDS + first_word; }

// Where a layer's state before the rows of a part begins; NO_SLOT stands for zeros.
uint state_before(uint part) { return word_of_slot(step_parts[part].z); }

// Where a layer's state behind a row is stored; NO_SLOT: nowhere.
uint state_behind(uint row) { return word_of_slot(rows[row].w & 0xffffu); }
