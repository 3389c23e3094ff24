#include "support/tiny_llama.h"

// Writes a model that the programs of the documents can open: tiny_model FOLDER.
int main(int, char** argv) { regard::test::TinyLlama().write_hugging_face(argv[1]); }
