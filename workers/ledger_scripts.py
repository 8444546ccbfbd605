"""The ledger's steps that Redis takes as one, in Lua: whoever dies, none is half done.

Which keys there are: `workers.ledger`, which hands them over.
"""

from __future__ import annotations

# A run is entered once. One that the schedule asks for, only where nothing of the same was begun since it was due,
# and nothing of the same is still open: the open run is the lock, so that none outlives its holder.
OPEN = """
if redis.call('HEXISTS', KEYS[1], 'spec') == 1 then return 'done' end
local begun = tonumber(redis.call('ZSCORE', KEYS[4], ARGV[3]) or 0)
local now = tonumber(ARGV[4])
if ARGV[5] ~= '' then
  local due = tonumber(ARGV[5])
  if begun >= due then return 'done' end
  for _, run_id in ipairs(redis.call('SMEMBERS', KEYS[3])) do
    local other = ARGV[6] .. run_id
    local found = redis.call('HMGET', other, 'same', 'record')
    if found[1] == ARGV[3] and not found[2] then
      redis.call('ZADD', KEYS[4], due, ARGV[3])
      redis.call('RPUSH', other .. ':skipped', ARGV[5])
      redis.call('LTRIM', other .. ':skipped', -ARGV[7], -1)
      return 'running ' .. run_id
    end
  end
  now = math.max(now, due)
end
redis.call('HSET', KEYS[1], 'spec', ARGV[2], 'same', ARGV[3], 'subjects', 0, 'ended', 0, 'touched', ARGV[4])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[4], math.max(now, begun), ARGV[3])
return 'started'
"""

# A piece counts once, however often it is delivered; not at all once its subject has ended or has begun again.
DELIVER = """
if redis.call('HGET', KEYS[2], 'attempt') ~= ARGV[7] then return -1 end
if redis.call('HGET', KEYS[2], 'dates:' .. ARGV[2]) ~= ARGV[8] then return -1 end
if redis.call('HSETNX', KEYS[2], 'piece:' .. ARGV[2], ARGV[3]) == 1 then
  redis.call('HINCRBY', KEYS[1], 'sessions', ARGV[4])
  redis.call('HINCRBY', KEYS[1], 'lab:' .. ARGV[6] .. ':sessions', ARGV[4])
  redis.call('HINCRBY', KEYS[2], 'delivered', 1)
end
redis.call('ZADD', KEYS[3], 'XX', ARGV[5], ARGV[1])
return redis.call('HGET', KEYS[2], 'pieces') - redis.call('HGET', KEYS[2], 'delivered')
"""

# A piece is handed to the extraction queue once; what became of its message is for whoever sends again what is owed.
# What was extracted of it so far stands there too, and is put in the place of what stood there before.
HAND_ON = """
if redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[3] then return 0 end
if redis.call('HGET', KEYS[1], 'dates:' .. ARGV[2]) ~= ARGV[4] then return 0 end
redis.call('ZADD', KEYS[2], 'XX', ARGV[5], ARGV[1])
if ARGV[6] == '' then return redis.call('HSETNX', KEYS[1], 'extracting:' .. ARGV[2], '[]') end
redis.call('HSET', KEYS[1], 'extracting:' .. ARGV[2], ARGV[6])
return 1
"""

# The outcome that is recorded first stays; the subject's work is dropped with it.
END = """
if redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[2]) == 1 then
  redis.call('HINCRBY', KEYS[1], ARGV[3], 1)
  redis.call('HINCRBY', KEYS[1], 'ended', 1)
  redis.call('HINCRBY', KEYS[1], 'lab:' .. ARGV[4] .. ':ended', 1)
  redis.call('HSET', KEYS[1], 'touched', ARGV[5])
end
redis.call('UNLINK', KEYS[3])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('HDEL', KEYS[5], ARGV[1])
local planned = redis.call('HGET', KEYS[1], 'planned')
return planned and redis.call('HGET', KEYS[1], 'ended') == redis.call('HGET', KEYS[1], 'subjects')
"""

REGISTER = """
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 0 end
if redis.call('HSETNX', KEYS[3], ARGV[1], 'waiting') == 1 then
  redis.call('HINCRBY', KEYS[1], 'subjects', 1)
  redis.call('HINCRBY', KEYS[1], 'lab:' .. ARGV[2] .. ':subjects', 1)
  redis.call('ZADD', KEYS[4], ARGV[3], ARGV[1])
end
return 1
"""

# Whoever comes after a subject's end does not bring it back.
SET_STAGE = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 0 end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[3], 'XX', ARGV[3], ARGV[1])
return 1
"""

BEGIN = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 0 end
redis.call('UNLINK', KEYS[4])
redis.call('HSET', KEYS[4], unpack(ARGV, 3))
redis.call('HSET', KEYS[2], ARGV[1], 'summarising')
redis.call('ZADD', KEYS[3], 'XX', ARGV[2], ARGV[1])
return 1
"""

# Each time that there is still no news, the wait is twice as long: where no worker is there, or all are busy with
# what is more urgent, copies of messages do not pile up.
RESENT = """
local count = redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
local wait = math.max(0, math.min(ARGV[3] * (2 ^ math.min(count, 20) - 1), ARGV[4]))
redis.call('ZADD', KEYS[2], 'XX', ARGV[2] + wait, ARGV[1])
"""

# Statuses belong to the look whose days they were computed from.
SET_STATUSES = """
if redis.call('HGET', KEYS[4], 'look') ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[4], 'statuses', ARGV[4])
redis.call('HSET', KEYS[2], ARGV[1], 'writing')
redis.call('ZADD', KEYS[3], 'XX', ARGV[2], ARGV[1])
return 1
"""
