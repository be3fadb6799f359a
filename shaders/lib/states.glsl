// The states of layers that keep one, in slots of SLOT_WORDS numbers; a layer's begin at `first_word` of a slot. A step
// reads them from one slot, and stores them in others behind rows that say so. Include after lib/step.glsl.
// Constant SLOT_WORDS and push constant first_word are the including file's.
#define NO_SLOT 0xffffffffu

// Where a layer's state before the step begins; NO_SLOT stands for zeros.
uint state_before_step() { return step_parts[0].z == 0 ? NO_SLOT : (step_parts[0].z - 1) * SLOT_WORDS + first_word; }

// Where a layer's state behind a row is stored; NO_SLOT: nowhere.
uint state_behind(uint row) { return rows[row].w == 0 ? NO_SLOT : (rows[row].w - 1) * SLOT_WORDS + first_word; }
