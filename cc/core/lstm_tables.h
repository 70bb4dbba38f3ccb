// The fixed-point functions of TFLite's integer LSTM as tables: a value costs less to look up than to
// compute.
#ifndef DQAT_CORE_LSTM_TABLES_H_
#define DQAT_CORE_LSTM_TABLES_H_

#include "core/lstm_rows.h"

namespace dqat::core {

// For a cell state of scale 2^cell_exponent, -15 to -9. Computed once in a process, 256 KiB a table.
LstmTables LstmTablesFor(int cell_exponent);

}  // namespace dqat::core

#endif  // DQAT_CORE_LSTM_TABLES_H_
